// Tensors of the host program: row-major values of one type, in memory that someone else owns.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>

#include "refusal.h"

namespace jaxrank::host {

enum class Type : uint8_t {
  kBool,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUint8,
  kUint16,
  kUint32,
  kUint64,
  kFloat32,
  kFloat64,
  kString,
};

// A string is a view of bytes in the request, in a constant, or in the arena.
using Bytes = std::string_view;

size_t item_size(Type type);
const char* name_of(Type type);                             // NumPy's name of it, or "string"
std::optional<Type> type_named(std::string_view name);
inline bool is_float(Type type) { return type == Type::kFloat32 || type == Type::kFloat64; }
inline bool is_integer(Type type) { return type >= Type::kInt8 && type <= Type::kUint64; }

template <typename T>
constexpr Type type_of() {
  if constexpr (std::is_same_v<T, bool>) return Type::kBool;
  else if constexpr (std::is_same_v<T, int8_t>) return Type::kInt8;
  else if constexpr (std::is_same_v<T, int16_t>) return Type::kInt16;
  else if constexpr (std::is_same_v<T, int32_t>) return Type::kInt32;
  else if constexpr (std::is_same_v<T, int64_t>) return Type::kInt64;
  else if constexpr (std::is_same_v<T, uint8_t>) return Type::kUint8;
  else if constexpr (std::is_same_v<T, uint16_t>) return Type::kUint16;
  else if constexpr (std::is_same_v<T, uint32_t>) return Type::kUint32;
  else if constexpr (std::is_same_v<T, uint64_t>) return Type::kUint64;
  else if constexpr (std::is_same_v<T, float>) return Type::kFloat32;
  else if constexpr (std::is_same_v<T, double>) return Type::kFloat64;
  else {
    static_assert(std::is_same_v<T, Bytes>);
    return Type::kString;
  }
}

// Sizes of the dimensions. TensorFlow's kernels take at most eight; some room is for views in between.
constexpr int kMaxRank = 10;

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) {
    for (int64_t size : sizes) push_back(size);
  }
  explicit Shape(std::span<const int64_t> sizes) {
    for (int64_t size : sizes) push_back(size);
  }

  int rank() const { return rank_; }
  int64_t& operator[](int i) { return sizes_[i]; }
  int64_t operator[](int i) const { return sizes_[i]; }
  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + rank_; }
  void push_back(int64_t size) {
    check(rank_ < kMaxRank, "a tensor of more than ", kMaxRank, " dimensions");
    sizes_[rank_++] = size;
  }
  void append(const int64_t* first, const int64_t* last) {
    for (; first != last; ++first) push_back(*first);
  }
  bool operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

  // Number of elements. Throws `Refusal` for a negative size and for more elements than memory has.
  int64_t count() const { return product(0, rank_); }
  // Of the dimensions [from, to).
  int64_t product(int from, int to) const;

 private:
  int rank_ = 0;
  std::array<int64_t, kMaxRank> sizes_{};
};
inline std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  return out << Listed{{shape.begin(), shape.end()}};
}

struct Tensor {
  Type type = Type::kFloat32;
  Shape shape;
  int64_t count = 0;
  void* data = nullptr;
  // Elements from one row of a feature block to the next, where the values lie there already; 0: they are contiguous.
  int64_t block_stride = 0;

  int rank() const { return shape.rank(); }
  // Rows: the size of the first dimension.
  int64_t rows() const { return shape.rank() ? shape[0] : 1; }

  template <typename T>
  const T* as() const {
    check(type == type_of<T>(), "a tensor of ", name_of(type), " where ", name_of(type_of<T>()), " is expected");
    return static_cast<const T*>(data);
  }
  template <typename T>
  std::span<const T> values() const {
    return {as<T>(), static_cast<size_t>(count)};
  }
};

// Calls `f` with a `std::type_identity` of the C++ type.
template <typename F>
decltype(auto) for_integer(Type type, F&& f) {
  switch (type) {
    case Type::kInt8: return f(std::type_identity<int8_t>{});
    case Type::kInt16: return f(std::type_identity<int16_t>{});
    case Type::kInt32: return f(std::type_identity<int32_t>{});
    case Type::kInt64: return f(std::type_identity<int64_t>{});
    case Type::kUint8: return f(std::type_identity<uint8_t>{});
    case Type::kUint16: return f(std::type_identity<uint16_t>{});
    case Type::kUint32: return f(std::type_identity<uint32_t>{});
    case Type::kUint64: return f(std::type_identity<uint64_t>{});
    default: refuse("a tensor of ", name_of(type), " where integers are expected");
  }
}

template <typename F>
decltype(auto) for_float(Type type, F&& f) {
  switch (type) {
    case Type::kFloat32: return f(std::type_identity<float>{});
    case Type::kFloat64: return f(std::type_identity<double>{});
    default: refuse("a tensor of ", name_of(type), " where floats are expected");
  }
}

template <typename F>
decltype(auto) for_number(Type type, F&& f) {
  if (is_float(type)) return for_float(type, f);
  if (is_integer(type)) return for_integer(type, f);
  refuse("a tensor of ", name_of(type), " where numbers are expected");
}

// Numbers and bools.
template <typename F>
decltype(auto) for_plain(Type type, F&& f) {
  if (type == Type::kBool) return f(std::type_identity<bool>{});
  return for_number(type, f);
}

template <typename F>
decltype(auto) for_any(Type type, F&& f) {
  if (type == Type::kString) return f(std::type_identity<Bytes>{});
  return for_plain(type, f);
}

// Indices: int32 or int64.
template <typename F>
decltype(auto) for_index(Type type, F&& f) {
  switch (type) {
    case Type::kInt32: return f(std::type_identity<int32_t>{});
    case Type::kInt64: return f(std::type_identity<int64_t>{});
    default: return for_integer(type, f);
  }
}

// Values that are only moved, by their size.
struct Item16 {
  uint64_t low, high;
};
template <typename F>
decltype(auto) for_size(Type type, F&& f) {
  switch (item_size(type)) {
    case 1: return f(std::type_identity<uint8_t>{});
    case 2: return f(std::type_identity<uint16_t>{});
    case 4: return f(std::type_identity<uint32_t>{});
    case 8: return f(std::type_identity<uint64_t>{});
    default: return f(std::type_identity<Item16>{});
  }
}
static_assert(sizeof(Bytes) == sizeof(Item16) && std::is_trivially_copyable_v<Bytes>);

// One element as an int64; for tensors of shapes, axes and counts.
int64_t integer_at(const Tensor& tensor, int64_t i);
// The elements of such a tensor as a shape: at most kMaxRank of them.
Shape shape_from(const Tensor& tensor);
// The value of a tensor that must have one element.
int64_t scalar_integer(const Tensor& tensor, const char* name);
template <typename T>
T scalar_value(const Tensor& tensor, const char* name) {
  check(tensor.count == 1, name, " must be one value, it has shape ", tensor.shape);
  return tensor.as<T>()[0];
}
// `axis` counted from the front.
int axis_of(int64_t axis, int rank, const char* name = "axis");

}  // namespace jaxrank::host
