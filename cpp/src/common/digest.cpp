#include "common/digest.h"

#include <openssl/evp.h>

#include "hybrid_rt/error.h"

namespace hybrid_rt {

std::string sha256(const void* data, size_t size) {
  unsigned char bytes[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  if (EVP_Digest(data, size, bytes, &length, EVP_sha256(), nullptr) != 1) {
    throw Error(ErrorKind::kBundle, "digest", "SHA-256", "OpenSSL to compute it", "a refusal",
                "Check OpenSSL's configuration on this machine, e.g. FIPS mode.");
  }
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * length);
  for (unsigned int i = 0; i < length; ++i) {
    text.push_back(kDigits[bytes[i] >> 4]);
    text.push_back(kDigits[bytes[i] & 15]);
  }
  return text;
}

}  // namespace hybrid_rt
