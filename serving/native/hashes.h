// The string hashes that TensorFlow's ops use, bit-exact. Each is written from its definition.
#pragma once

#include <cstddef>
#include <cstdint>

namespace jaxrank {

// FarmHash's Fingerprint64: string_to_hash_bucket_fast.
uint64_t fingerprint64(const char* s, size_t n);

// MurmurHash64A (Austin Appleby, public domain) with TensorFlow's seed: the older string_to_hash_bucket.
uint64_t hash64(const char* s, size_t n);

// SipHash-2-4 (Aumasson and Bernstein, 2012): string_to_hash_bucket_strong.
uint64_t siphash(uint64_t key0, uint64_t key1, const char* s, size_t n);

}  // namespace jaxrank
