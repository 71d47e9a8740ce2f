// The native core: string hashing, bit-exact with TensorFlow's string_to_hash_bucket_fast.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace nb = nanobind;

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

using Buckets = nb::ndarray<nb::numpy, int64_t, nb::ndim<1>, nb::c_contig>;

void hash_bucket_fast(nb::list strings, int64_t buckets, Buckets out) {
  if (buckets <= 0) throw std::invalid_argument("the number of hash buckets must be positive");
  if (nb::len(strings) != out.shape(0)) throw std::invalid_argument("one output for each string is needed");
  int64_t* next = out.data();
  for (nb::handle item : strings) {
    char* data = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(item.ptr(), &data, &size) != 0) throw nb::python_error();
    *next++ = static_cast<int64_t>(fingerprint64(data, static_cast<size_t>(size)) % static_cast<uint64_t>(buckets));
  }
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "String hashing of the host program.";
  m.def("hash_bucket_fast", &hash_bucket_fast, nb::arg("strings"), nb::arg("buckets"), nb::arg("out"),
        "Writes TensorFlow's string_to_hash_bucket_fast of each bytes object in `strings` to int64 `out`.");
}
