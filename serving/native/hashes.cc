#include "hashes.h"

#include <nanobind/ndarray.h>

#include <bit>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "bindings.h"

namespace nb = nanobind;

namespace jaxrank {

namespace {

// FarmHash's 64-bit fingerprint (google/farmhash, "Fingerprint64"), written from its definition. It is stable by contract:
// buckets computed years ago must still be found.
constexpr uint64_t kMul0 = 0xc3a5c85c97cb3127ULL;
constexpr uint64_t kMul1 = 0xb492b66fbe98f273ULL;
constexpr uint64_t kMul2 = 0x9ae16a3b2f90404fULL;

static_assert(std::endian::native == std::endian::little, "fingerprints read little-endian words");

uint64_t load64(const char* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

uint64_t load32(const char* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

uint64_t shift_mix(uint64_t value) { return value ^ (value >> 47); }

uint64_t combine(uint64_t low, uint64_t high, uint64_t mul) {
  const uint64_t a = shift_mix((low ^ high) * mul);
  return shift_mix((high ^ a) * mul) * mul;
}

uint64_t fingerprint_upto16(const char* s, size_t n) {
  if (n >= 8) {
    const uint64_t mul = kMul2 + n * 2;
    const uint64_t head = load64(s) + kMul2;
    const uint64_t tail = load64(s + n - 8);
    return combine(std::rotr(tail, 37) * mul + head, (std::rotr(head, 25) + tail) * mul, mul);
  }
  if (n >= 4) return combine(n + (load32(s) << 3), load32(s + n - 4), kMul2 + n * 2);
  if (n > 0) {
    const auto first = static_cast<uint8_t>(s[0]), middle = static_cast<uint8_t>(s[n >> 1]);
    const auto last = static_cast<uint8_t>(s[n - 1]);
    const uint64_t y = first + (static_cast<uint32_t>(middle) << 8);
    const uint64_t z = static_cast<uint32_t>(n) + (static_cast<uint32_t>(last) << 2);
    return shift_mix(y * kMul2 ^ z * kMul0) * kMul2;
  }
  return kMul2;
}

uint64_t fingerprint_upto32(const char* s, size_t n) {
  const uint64_t mul = kMul2 + n * 2;
  const uint64_t a = load64(s) * kMul1, b = load64(s + 8);
  const uint64_t c = load64(s + n - 8) * mul, d = load64(s + n - 16) * kMul2;
  return combine(std::rotr(a + b, 43) + std::rotr(c, 30) + d, a + std::rotr(b + kMul2, 18) + c, mul);
}

uint64_t fingerprint_upto64(const char* s, size_t n) {
  const uint64_t mul = kMul2 + n * 2;
  const uint64_t a = load64(s) * kMul2, b = load64(s + 8);
  const uint64_t c = load64(s + n - 8) * mul, d = load64(s + n - 16) * kMul2;
  const uint64_t y = std::rotr(a + b, 43) + std::rotr(c, 30) + d;
  const uint64_t z = combine(y, a + std::rotr(b + kMul2, 18) + c, mul);
  const uint64_t e = load64(s + 16) * mul, f = load64(s + 24);
  const uint64_t g = (y + load64(s + n - 32)) * mul, h = (z + load64(s + n - 24)) * mul;
  return combine(std::rotr(e + f, 43) + std::rotr(g, 30) + h, e + std::rotr(f + a, 18) + g, mul);
}

using Pair = std::pair<uint64_t, uint64_t>;

Pair mix32(const char* s, uint64_t a, uint64_t b) {
  const uint64_t w = load64(s), x = load64(s + 8), y = load64(s + 16), z = load64(s + 24);
  a += w;
  b = std::rotr(b + a + z, 21);
  const uint64_t start = a;
  a += x + y;
  b += std::rotr(a, 44);
  return {a + z, b + start};
}

}  // namespace

uint64_t fingerprint64(const char* s, size_t n) {
  if (n <= 16) return fingerprint_upto16(s, n);
  if (n <= 32) return fingerprint_upto32(s, n);
  if (n <= 64) return fingerprint_upto64(s, n);

  constexpr uint64_t kSeed = 81;
  uint64_t x = kSeed * kMul2 + load64(s);
  uint64_t y = kSeed * kMul1 + 113;
  uint64_t z = shift_mix(y * kMul2 + 113) * kMul2;
  Pair v{0, 0}, w{0, 0};
  const char* const end = s + (n - 1) / 64 * 64;
  const char* const last = end + ((n - 1) & 63) - 63;
  auto step = [&](const char* p, uint64_t mul, uint64_t scale) {
    x = std::rotr(x + y + v.first + load64(p + 8), 37) * mul;
    y = std::rotr(y + v.second + load64(p + 48), 42) * mul;
    x ^= w.second * scale;
    y += v.first * scale + load64(p + 40);
    z = std::rotr(z + w.first, 33) * mul;
    v = mix32(p, v.second * mul, x + w.first);
    w = mix32(p + 32, z + w.second, y + load64(p + 16));
    std::swap(z, x);
  };
  for (; s != end; s += 64) step(s, kMul1, 1);
  const uint64_t mul = kMul1 + ((z & 0xff) << 1);
  w.first += (n - 1) & 63;
  v.first += w.first;
  w.first += v.first;
  step(last, mul, 9);
  return combine(combine(v.first, w.first, mul) + shift_mix(y) * kMul0 + z, combine(v.second, w.second, mul) + x, mul);
}

uint64_t hash64(const char* s, size_t n) {
  constexpr uint64_t kMul = 0xc6a4a7935bd1e995ULL, kSeed = 0xDECAFCAFFEULL;
  uint64_t h = kSeed ^ (n * kMul);
  for (; n >= 8; s += 8, n -= 8) {
    uint64_t word = load64(s) * kMul;
    word = (word ^ (word >> 47)) * kMul;
    h = (h ^ word) * kMul;
  }
  if (n > 0) {
    uint64_t word = 0;
    std::memcpy(&word, s, n);
    h = (h ^ word) * kMul;
  }
  h = shift_mix(h) * kMul;
  return shift_mix(h);
}

uint64_t siphash(uint64_t key0, uint64_t key1, const char* s, size_t n) {
  uint64_t a = key0 ^ 0x736f6d6570736575ULL, b = key1 ^ 0x646f72616e646f6dULL;
  uint64_t c = key0 ^ 0x6c7967656e657261ULL, d = key1 ^ 0x7465646279746573ULL;
  auto round = [&] {
    a += b, c += d;
    b = std::rotl(b, 13) ^ a, d = std::rotl(d, 16) ^ c;
    a = std::rotl(a, 32);
    c += b, a += d;
    b = std::rotl(b, 17) ^ c, d = std::rotl(d, 21) ^ a;
    c = std::rotl(c, 32);
  };
  auto absorb = [&](uint64_t word) {
    d ^= word;
    round(), round();
    a ^= word;
  };
  uint64_t last = static_cast<uint64_t>(n) << 56;
  for (; n >= 8; s += 8, n -= 8) absorb(load64(s));
  uint64_t rest = 0;
  std::memcpy(&rest, s, n);
  absorb(last | rest);
  c ^= 0xff;
  for (int i = 0; i < 4; ++i) round();
  return a ^ b ^ c ^ d;
}

namespace {

using Hashes = nb::ndarray<nb::numpy, uint64_t, nb::ndim<1>, nb::c_contig>;
using Buckets = nb::ndarray<nb::numpy, int64_t, nb::ndim<1>, nb::c_contig>;

// Calls `write(output, hash of the string)` for each string.
template <typename Out, typename Hash, typename Write>
void for_each_hash(const nb::list& strings, Out& out, Hash hash, Write write) {
  if (nb::len(strings) != out.shape(0)) throw std::invalid_argument("one output for each string is needed");
  auto* next = out.data();
  for (nb::handle item : strings) {
    char* data = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(item.ptr(), &data, &size) != 0) throw nb::python_error();
    write(*next++, hash(data, static_cast<size_t>(size)));
  }
}

template <typename Hash>
void hash_buckets(const nb::list& strings, int64_t buckets, Buckets& out, Hash hash) {
  if (buckets <= 0) throw std::invalid_argument("the number of hash buckets must be positive");
  for_each_hash(strings, out, hash, [n = static_cast<uint64_t>(buckets)](int64_t& bucket, uint64_t value) {
    bucket = static_cast<int64_t>(value % n);
  });
}

void store(uint64_t& target, uint64_t value) { target = value; }

void hash_bucket(nb::list strings, int64_t buckets, Buckets out) { hash_buckets(strings, buckets, out, hash64); }

void hash_bucket_fast(nb::list strings, int64_t buckets, Buckets out) {
  hash_buckets(strings, buckets, out, fingerprint64);
}

void hash_bucket_strong(nb::list strings, int64_t buckets, uint64_t key0, uint64_t key1, Buckets out) {
  hash_buckets(strings, buckets, out, [=](const char* s, size_t n) { return siphash(key0, key1, s, n); });
}

void fingerprints(nb::list strings, Hashes out) { for_each_hash(strings, out, fingerprint64, store); }

void keyed_hashes(nb::list strings, uint64_t key0, uint64_t key1, Hashes out) {
  for_each_hash(strings, out, [=](const char* s, size_t n) { return siphash(key0, key1, s, n); }, store);
}

}  // namespace

void bind_hashes(nb::module_& m) {
  m.def("hash_bucket", &hash_bucket, nb::arg("strings"), nb::arg("buckets"), nb::arg("out"),
        "Writes TensorFlow's string_to_hash_bucket of each string to int64 `out`.");
  m.def("hash_bucket_fast", &hash_bucket_fast, nb::arg("strings"), nb::arg("buckets"), nb::arg("out"),
        "Writes TensorFlow's string_to_hash_bucket_fast of each bytes object in `strings` to int64 `out`.");
  m.def("hash_bucket_strong", &hash_bucket_strong, nb::arg("strings"), nb::arg("buckets"), nb::arg("key0"),
        nb::arg("key1"), nb::arg("out"), "Writes TensorFlow's string_to_hash_bucket_strong of each string to int64 `out`.");
  m.def("fingerprints", &fingerprints, nb::arg("strings"), nb::arg("out"),
        "Writes the FarmHash Fingerprint64 of each string to uint64 `out`.");
  m.def("keyed_hashes", &keyed_hashes, nb::arg("strings"), nb::arg("key0"), nb::arg("key1"), nb::arg("out"),
        "Writes the SipHash-2-4 of each string to uint64 `out`.");
}

}  // namespace jaxrank
