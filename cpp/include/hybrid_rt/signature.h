#pragma once

#include <string>
#include <vector>

namespace hybrid_rt {

/// A signature of a bundle: Ed25519 (RFC 8032) over its manifest, which holds the digest of every other record.
struct Signature {
  std::string key;    ///< SHA-256 of the signer's public key (its 32 bytes), in hexadecimal digits
  std::string bytes;  ///< 64 bytes, in hexadecimal digits
};

/// Signs a bundle's manifest; writes nothing. `private_key` is the path of a PEM file, as
/// `openssl genpkey -algorithm ed25519` writes it. Throws Error: kBundle for the bundle, kOption for the key.
Signature sign(const std::string& path, const std::string& private_key);

/// Returns the name of a key in signatures: the SHA-256 of its public half. `private_key` is the path of a PEM file.
/// Throws Error(kOption).
std::string key_of(const std::string& private_key);

/// Returns the signatures in a bundle and in the file PATH.sig beside it, without checking them. Throws
/// Error(kBundle).
std::vector<Signature> signatures(const std::string& path);

/// Returns the paths of the keys, of those given, that have signed the bundle. `trusted_keys` are paths of PEM files
/// with public keys. Compares every record with its digest. Throws Error: kBundle if no key has signed it or a
/// record was altered, kOption if a key can't be read.
std::vector<std::string> verify_signature(const std::string& path, const std::vector<std::string>& trusted_keys);

}  // namespace hybrid_rt
