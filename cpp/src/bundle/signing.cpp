#include "bundle/signing.h"

#include <openssl/evp.h>
#include <openssl/pem.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <sstream>

#include "common/digest.h"
#include "common/json_text.h"
#include "hybrid_rt/error.h"
#include "hybrid_rt/signature.h"

namespace hybrid_rt {
namespace {

using KeyPointer = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using ContextPointer = std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>;
using FilePointer = std::unique_ptr<std::FILE, decltype(&std::fclose)>;
using Bytes = std::vector<unsigned char>;

constexpr size_t kSignatureBytes = 64;
constexpr size_t kKeyBytes = 32;
/// Limit of a file of signatures, enough for hundreds of signers.
constexpr std::streamsize kLongestFile = std::streamsize{1} << 16;

Error bad_key(const std::string& path, const std::string& kind, const std::string& got) {
  return Error(ErrorKind::kOption, "signature", "key " + path, "a PEM file with an Ed25519 " + kind + " key", got,
               "`openssl genpkey -algorithm ed25519` makes a private key, `openssl pkey -pubout` its public one.");
}

/// Refuses to ask for a pass phrase, because a service has no terminal.
int no_phrase(char* /*buffer*/, int /*size*/, int /*writes*/, void* /*data*/) { return -1; }

KeyPointer read_key(const std::string& path, bool is_private) {
  const std::string kind = is_private ? "private" : "public";
  const FilePointer file(std::fopen(path.c_str(), "rbe"), &std::fclose);
  if (!file) throw bad_key(path, kind, "a file that can't be read");
  KeyPointer key(is_private ? PEM_read_PrivateKey(file.get(), nullptr, &no_phrase, nullptr)
                            : PEM_read_PUBKEY(file.get(), nullptr, &no_phrase, nullptr),
                 &EVP_PKEY_free);
  if (!key) throw bad_key(path, kind, "something else, or a key with a pass phrase");
  if (EVP_PKEY_id(key.get()) != EVP_PKEY_ED25519) throw bad_key(path, kind, "a key of another kind");
  return key;
}

std::string id_of(const EVP_PKEY* key) {
  std::array<unsigned char, kKeyBytes> raw{};
  size_t size = raw.size();
  EVP_PKEY_get_raw_public_key(key, raw.data(), &size);
  return sha256(raw.data(), raw.size());
}

/// Returns the text that is signed. It names the format, so that no signature of another file or format fits it.
std::string signed_text(const Archive& file) {
  const std::string& manifest = file.stored_manifest();
  return "hybrid_rt bundle\nformat " + file.format_version() + "\nmanifest " +
         sha256(manifest.data(), manifest.size()) + "\n";
}

const unsigned char* data_of(const std::string& text) { return reinterpret_cast<const unsigned char*>(text.data()); }

std::optional<Bytes> from_hexadecimal(const std::string& text) {
  Bytes bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2) {
    unsigned value = 0;
    for (const char digit : {text[i], text[i + 1]}) {
      const bool is_letter = digit >= 'a' && digit <= 'f';
      if (!is_letter && (digit < '0' || digit > '9')) return std::nullopt;
      value = value * 16 + static_cast<unsigned>(is_letter ? digit - 'a' + 10 : digit - '0');
    }
    bytes.push_back(static_cast<unsigned char>(value));
  }
  return text.size() % 2 == 0 ? std::optional(bytes) : std::nullopt;
}

std::string to_hexadecimal(const Bytes& bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

bool fits(EVP_PKEY* key, const std::string& text, const std::string& signature) {
  const std::optional<Bytes> bytes = from_hexadecimal(signature);
  if (!bytes || bytes->size() != kSignatureBytes) return false;
  const ContextPointer context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  return context && EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key) == 1 &&
         EVP_DigestVerify(context.get(), bytes->data(), bytes->size(), data_of(text), text.size()) == 1;
}

/// Adds the signatures of a list of objects with "key" and "signature", and ignores everything else.
void add_from(const std::string& text, std::vector<Signature>& found) {
  const nlohmann::json parsed = parse_json(text);
  if (!parsed.is_array()) return;
  for (const auto& entry : parsed) {
    if (!entry.is_object()) continue;
    const auto key = entry.find("key");
    const auto bytes = entry.find("signature");
    const bool is_whole = key != entry.end() && key->is_string() && bytes != entry.end() && bytes->is_string();
    if (is_whole) found.push_back({key->get<std::string>(), bytes->get<std::string>()});
  }
}

/// Returns the contents of the file next to the bundle; empty if there is none.
std::string detached(const std::string& path) {
  std::ifstream stream(path + ".sig", std::ios::binary);
  std::string text(static_cast<size_t>(kLongestFile), '\0');
  stream.read(text.data(), kLongestFile);
  text.resize(static_cast<size_t>(std::max<std::streamsize>(stream.gcount(), 0)));
  return text;
}

std::vector<Signature> signatures_of(const Archive& file) {
  std::vector<Signature> found;
  for (const std::string& text : file.signatures()) add_from(text, found);
  add_from(detached(file.path()), found);
  return found;
}

std::vector<std::string> keys_of_environment() {
  const char* const given = std::getenv("HYBRID_RT_TRUSTED_KEYS");
  std::istringstream paths(given == nullptr ? "" : given);
  std::vector<std::string> keys;
  for (std::string path; std::getline(paths, path, ':');) {
    if (!path.empty()) keys.push_back(path);
  }
  return keys;
}

}  // namespace

Signature sign(const std::string& path, const std::string& private_key) {
  const Archive file(path);
  file.verify(Archive::Records::kAll);
  const KeyPointer key = read_key(private_key, /*is_private=*/true);
  const std::string text = signed_text(file);
  const ContextPointer context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  Bytes bytes(kSignatureBytes);
  size_t size = bytes.size();
  const bool is_signed = context && EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, key.get()) == 1 &&
                         EVP_DigestSign(context.get(), bytes.data(), &size, data_of(text), text.size()) == 1;
  if (!is_signed) throw bad_key(private_key, "private", "a key that OpenSSL does not sign with");
  return {id_of(key.get()), to_hexadecimal(bytes)};
}

std::string key_of(const std::string& private_key) { return id_of(read_key(private_key, /*is_private=*/true).get()); }

std::vector<Signature> signatures(const std::string& path) { return signatures_of(Archive(path)); }

std::vector<std::string> verify_signature(const std::string& path, const std::vector<std::string>& trusted_keys) {
  return require_signature(Archive(path), trusted_keys);
}

std::vector<std::string> require_signature(const Archive& file, const std::vector<std::string>& trusted_keys) {
  if (trusted_keys.empty()) {
    throw Error(ErrorKind::kOption, "signature", "trusted_keys", "at least one public key", "none",
                "Pass PEM files, or set HYBRID_RT_TRUSTED_KEYS.");
  }
  const std::string text = signed_text(file);
  const std::vector<Signature> found = signatures_of(file);
  std::vector<std::string> signers;
  for (const std::string& path : trusted_keys) {
    const KeyPointer key = read_key(path, /*is_private=*/false);
    const std::string id = id_of(key.get());
    for (const Signature& signature : found) {
      if (signature.key != id || !fits(key.get(), text, signature.bytes)) continue;
      signers.push_back(path);
      break;
    }
  }
  if (signers.empty()) {
    throw Error(
        ErrorKind::kBundle, "signature", file.path(),
        "a signature of one of " + std::to_string(trusted_keys.size()) + " trusted keys",
        found.empty() ? "none" : std::to_string(found.size()) + " that no trusted key has made for this file",
        "Get the file from a source that you trust, or sign it: `hybrid-rt sign FILE --key KEY`. A change of the file "
        "drops its signatures.");
  }
  file.verify(Archive::Records::kAll);
  return signers;
}

void check_trust(const Archive& file, const LoadOptions& options) {
  const std::vector<std::string> keys = options.trusted_keys.empty() ? keys_of_environment() : options.trusted_keys;
  if (options.trust == TrustPolicy::kSigned || !keys.empty()) require_signature(file, keys);
}

}  // namespace hybrid_rt
