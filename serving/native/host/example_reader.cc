#include "example_reader.h"

namespace jaxrank::host {

namespace {

// The encoding of protocol buffers: fields of a number and a wire type. Every read says whether the bytes allow it.
class Reader {
 public:
  explicit Reader(Bytes bytes) : at_(bytes.data()), end_(bytes.data() + bytes.size()) {}

  enum Wire : uint32_t { kVarint = 0, kFixed64 = 1, kLength = 2, kGroup = 3, kEndGroup = 4, kFixed32 = 5 };

  bool done() const { return at_ == end_; }

  bool varint(uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (at_ == end_) return false;
      const auto byte = static_cast<uint8_t>(*at_++);
      value |= shift < 64 ? static_cast<uint64_t>(byte & 127) << shift : 0;
      if (byte < 128) return true;
    }
    return false;
  }

  bool tag(uint32_t& number, uint32_t& wire) {
    uint64_t value;
    if (!varint(value) || value > UINT32_MAX) return false;
    number = static_cast<uint32_t>(value) >> 3;
    wire = static_cast<uint32_t>(value) & 7;
    return number != 0;
  }

  bool length_delimited(Bytes& bytes) {
    uint64_t size;
    if (!varint(size) || size > static_cast<uint64_t>(end_ - at_)) return false;
    bytes = {at_, static_cast<size_t>(size)};
    at_ += size;
    return true;
  }

  template <typename T>
  bool fixed(T& value) {
    if (static_cast<size_t>(end_ - at_) < sizeof value) return false;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return true;
  }

  // Passes over a field that nobody reads; groups may hold groups, to the depth that protocol buffers allow.
  bool skip(uint32_t number, uint32_t wire, int depth = 0) {
    constexpr int kDeepest = 100;
    uint64_t number64;
    uint32_t number32;
    Bytes bytes;
    switch (wire) {
      case kVarint: return varint(number64);
      case kFixed64: return fixed(number64);
      case kFixed32: return fixed(number32);
      case kLength: return length_delimited(bytes);
      case kGroup:
        if (depth == kDeepest) return false;
        for (;;) {
          uint32_t inner, inner_wire;
          if (!tag(inner, inner_wire)) return false;
          if (inner_wire == kEndGroup) return inner == number;
          if (!skip(inner, inner_wire, depth + 1)) return false;
        }
      default: return false;
    }
  }

 private:
  const char* at_;
  const char* end_;
};

// Calls `f(field number, bytes)` for every length-delimited field, `other(reader, number, wire)` for every other one; each says
// whether it could read it.
template <typename F, typename Other>
bool each_field(Bytes message, F f, Other other) {
  Reader reader(message);
  while (!reader.done()) {
    uint32_t number, wire;
    if (!reader.tag(number, wire)) return false;
    if (wire == Reader::kLength) {
      Bytes bytes;
      if (!reader.length_delimited(bytes) || !f(number, bytes)) return false;
    } else if (!other(reader, number, wire)) {
      return false;
    }
  }
  return true;
}

bool skip_other(Reader& reader, uint32_t number, uint32_t wire) { return reader.skip(number, wire); }

// Calls `f` for every value of a list; false if it is damaged. Numbers come packed or one by one.
template <typename F>
bool each_bytes(Bytes list, F f) {
  return each_field(
      list,
      [&](uint32_t number, Bytes bytes) {
        if (number == 1) f(bytes);
        return true;
      },
      skip_other);
}

template <typename F>
bool each_float(Bytes list, F f) {
  const auto packed = [&](uint32_t number, Bytes bytes) {
    if (number != 1) return true;
    if (bytes.size() % sizeof(float)) return false;
    Reader reader(bytes);
    float value;
    while (reader.fixed(value)) f(value);
    return true;
  };
  return each_field(list, packed, [&](Reader& reader, uint32_t number, uint32_t wire) {
    if (number != 1 || wire != Reader::kFixed32) return reader.skip(number, wire);
    float value;
    if (!reader.fixed(value)) return false;
    f(value);
    return true;
  });
}

template <typename F>
bool each_int64(Bytes list, F f) {
  const auto packed = [&](uint32_t number, Bytes bytes) {
    if (number != 1) return true;
    Reader reader(bytes);
    uint64_t value;
    while (!reader.done()) {
      if (!reader.varint(value)) return false;
      f(static_cast<int64_t>(value));
    }
    return true;
  };
  return each_field(list, packed, [&](Reader& reader, uint32_t number, uint32_t wire) {
    if (number != 1 || wire != Reader::kVarint) return reader.skip(number, wire);
    uint64_t value;
    if (!reader.varint(value)) return false;
    f(static_cast<int64_t>(value));
    return true;
  });
}

// Adds a Feature message to the values. Of several lists of one kind all values count, of several kinds the last.
bool add_feature(Call& call, Bytes feature, FeatureValues& values) {
  return each_field(
      feature,
      [&](uint32_t number, Bytes list) {
        if (number > 3) return true;
        const auto kind = static_cast<ListKind>(number);
        if (kind != values.kind) values = {kind, 0, nullptr, nullptr};
        const auto count = [&](auto) { ++values.count; };
        const bool whole = kind == ListKind::kBytes ? each_bytes(list, count)
                           : kind == ListKind::kFloat ? each_float(list, count)
                                                      : each_int64(list, count);
        if (!whole) return false;
        auto* piece = new (call.scratch<FeatureValues::Piece>(1)) FeatureValues::Piece{list, nullptr};
        (values.first == nullptr ? values.first : values.last->next) = piece;
        values.last = piece;
        return true;
      },
      skip_other);
}

bool read_entry(Call& call, Bytes entry, const GiveFeature& give) {
  Bytes key;
  FeatureValues values;
  const bool whole = each_field(
      entry,
      [&](uint32_t number, Bytes bytes) {
        if (number == 1) key = bytes;
        return number != 2 || add_feature(call, bytes, values);
      },
      skip_other);
  if (whole) give(key, values);
  return whole;
}

}  // namespace

const char* name_of(ListKind kind) {
  switch (kind) {
    case ListKind::kBytes: return "bytes_list";
    case ListKind::kFloat: return "float_list";
    case ListKind::kInt64: return "int64_list";
    default: return "none";
  }
}

void FeatureValues::write(Bytes* out) const {
  for (const Piece* piece = first; piece; piece = piece->next) each_bytes(piece->list, [&](Bytes value) { *out++ = value; });
}

void FeatureValues::write(float* out) const {
  for (const Piece* piece = first; piece; piece = piece->next) each_float(piece->list, [&](float value) { *out++ = value; });
}

void FeatureValues::write(int64_t* out) const {
  for (const Piece* piece = first; piece; piece = piece->next) each_int64(piece->list, [&](int64_t value) { *out++ = value; });
}

bool read_example(Call& call, Bytes serialized, const GiveFeature& give) {
  return each_field(
      serialized,
      [&](uint32_t number, Bytes features) {
        return number != 1 || each_field(
                                  features,
                                  [&](uint32_t inner, Bytes entry) { return inner != 1 || read_entry(call, entry, give); },
                                  skip_other);
      },
      skip_other);
}

}  // namespace jaxrank::host
