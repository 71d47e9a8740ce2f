// String operators that treat every string alone. Strings are bytes; only where `unit` says so are they UTF-8.

#include "../../hashes.h"
#include "../layout.h"

namespace jaxrank::host {

namespace {

// Of hashing a text of a few words whose bytes are not in a cache.
constexpr int64_t kNanosecondsOfHash = 30;

template <typename Hash>
void write_buckets(Call& call, int64_t buckets, Hash hash) {
  const Tensor& texts = call.in(0);
  int64_t* out = call.make<int64_t>(0, texts.shape);
  const auto modulus = static_cast<uint64_t>(buckets);
  const Bytes* const all = texts.as<Bytes>();
  call.split(texts.count, kNanosecondsOfHash, [=](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) out[i] = static_cast<int64_t>(hash(all[i].data(), all[i].size()) % modulus);
  });
}

int64_t buckets_of(const Attributes& attributes, const char* name) {
  const int64_t buckets = attributes.integer(name);
  if (buckets <= 0) refuse<Unsupported>("the number of hash buckets must be positive");
  return buckets;
}

template <uint64_t (*Hash)(const char*, size_t)>
Kernel hash_bucket(const Attributes& attributes, const Resources&) {
  return [buckets = buckets_of(attributes, "num_buckets")](Call& call) { write_buckets(call, buckets, Hash); };
}

// `string_to_hash_bucket_fast` under the name that older bundles use.
Kernel hash_bucket_fast(const Attributes& attributes, const Resources&) {
  return [buckets = buckets_of(attributes, "buckets")](Call& call) { write_buckets(call, buckets, fingerprint64); };
}

Kernel hash_bucket_strong(const Attributes& attributes, const Resources&) {
  const std::vector<int64_t> key = attributes["key"].integers();
  if (key.size() != 2) refuse<Unsupported>("the key of a strong hash has two values, found ", key.size());
  return [buckets = buckets_of(attributes, "num_buckets"), a = static_cast<uint64_t>(key[0]),
          b = static_cast<uint64_t>(key[1])](Call& call) {
    write_buckets(call, buckets, [=](const char* s, size_t n) { return siphash(a, b, s, n); });
  };
}

// Where a character begins: every byte that does not continue one.
bool begins_character(char byte) { return (byte & 0xc0) != 0x80; }

Kernel string_length(const Attributes& attributes, const Resources&) {
  return [bytes = attributes.text("unit") == "BYTE"](Call& call) {
    const Tensor& texts = call.in(0);
    int32_t* out = call.make<int32_t>(0, texts.shape);
    for (const Bytes text : texts.values<Bytes>()) {
      *out++ = static_cast<int32_t>(bytes ? text.size() : std::count_if(text.begin(), text.end(), begins_character));
    }
  };
}

bool is_space(char c) { return c == ' ' || ('\t' <= c && c <= '\r'); }

void string_strip(Call& call) {
  const Tensor& texts = call.in(0);
  Bytes* out = call.make<Bytes>(0, texts.shape);
  for (Bytes text : texts.values<Bytes>()) {
    while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
    *out++ = text;
  }
}

// Strings of one shape (scalars stand for all) joined element by element.
Kernel string_join(const Attributes& attributes, const Resources&) {
  return [separator = attributes.text("separator")](Call& call) {
    Shape shape;
    for (int i = 0; i < call.inputs(); ++i) {
      const Shape& given = call.in(i).shape;
      check(!given.rank() || !shape.rank() || given == shape, "strings of shapes ", shape, " and ", given, " to join");
      if (given.rank()) shape = given;
    }
    Bytes* out = call.make<Bytes>(0, shape);
    const int64_t count = shape.count();
    auto** from = call.scratch<const Bytes*>(call.inputs());
    for (int p = 0; p < call.inputs(); ++p) from[p] = call.in(p).as<Bytes>();
    const auto part = [&](int p, int64_t i) { return from[p][call.in(p).rank() ? i : 0]; };
    for (int64_t i = 0; i < count; ++i) {
      size_t size = separator.size() * std::max(call.inputs() - 1, 0);
      for (int p = 0; p < call.inputs(); ++p) size += part(p, i).size();
      char* const text = call.scratch<char>(static_cast<int64_t>(size));
      char* to = text;
      for (int p = 0; p < call.inputs(); ++p) {
        if (p) to = std::copy(separator.begin(), separator.end(), to);
        const Bytes more = part(p, i);
        to = std::copy(more.begin(), more.end(), to);
      }
      out[i] = {text, size};
    }
  };
}

// `length` bytes from `first` on; a negative `first` counts from the end, a negative `length` means all.
Bytes cut_bytes(Bytes text, int64_t first, int64_t length) {
  const auto size = static_cast<int64_t>(text.size());
  check(-size <= first && first <= size, "pos ", first, " out of range for string ", Repr{text});
  const int64_t begin = first < 0 ? first + size : first;
  return text.substr(begin, length < 0 || length > size - begin ? size - begin : length);
}

Bytes cut_characters(Bytes text, int64_t first, int64_t length) {
  const int64_t size = std::count_if(text.begin(), text.end(), begins_character);
  check(-size <= first && first <= size, "pos ", first, " out of range for string ", Repr{text});
  if (length < 0) {
    check(first >= 0, "pos ", first, " with len ", length, " in characters");
    return {};
  }
  const int64_t begin = first < 0 ? first + size : first, end = length > size - begin ? size : begin + length;
  // Byte where character i begins; of one beyond the last, the end.
  const auto place = [&](int64_t i) {
    size_t at = 0;
    for (; at < text.size(); ++at) {
      if (begins_character(text[at]) && i-- == 0) break;
    }
    return at;
  };
  const size_t from = place(begin);
  return text.substr(from, place(end) - from);
}

// `pos` and `len` are of one shape and broadcast with the strings.
Kernel substr(const Attributes& attributes, const Resources&) {
  return [cut = attributes.text("unit") == "UTF8_CHAR" ? cut_characters : cut_bytes](Call& call) {
    const Tensor &texts = call.in(0), &pos = call.in(1), &length = call.in(2);
    check(pos.shape == length.shape, "pos ", pos.shape, " and len ", length.shape, " of different shapes");
    const std::optional<Shape> shape = broadcast(texts.shape, pos.shape);
    check(shape.has_value(), "pos of shape ", pos.shape, " for strings of shape ", texts.shape);
    Bytes* out = call.make<Bytes>(0, *shape);
    const int last = shape->rank() - 1;
    const Strides st = broadcast_strides(texts.shape, *shape), sp = broadcast_strides(pos.shape, *shape);
    const int64_t n = last < 0 ? 1 : (*shape)[last], text_step = last < 0 ? 0 : st[last], pos_step = last < 0 ? 0 : sp[last];
    for_rows(*shape, st, sp, [&](int64_t text, int64_t at) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t place = at + i * pos_step;
        *out++ = cut(texts.as<Bytes>()[text + i * text_step], integer_at(pos, place), integer_at(length, place));
      }
    });
  };
}

// The bytes of each string as numbers, `[..., numbers]`; all strings are of one length.
Kernel decode_raw(const Attributes& attributes, const Resources&) {
  return [type = attributes.type("out_type"), little = attributes.flag("little_endian")](Call& call) {
    const std::span<const Bytes> texts = call.in(0).values<Bytes>();
    const size_t item = item_size(type), size = texts.empty() ? 0 : texts[0].size();
    for (const Bytes text : texts) check(text.size() == size, "strings of lengths ", size, " and ", text.size(), " to decode");
    check(size % item == 0, size, " bytes are not a multiple of ", item);
    Shape shape = call.in(0).shape;
    shape.push_back(static_cast<int64_t>(size / item));
    char* to = static_cast<char*>(call.make(0, type, shape).data);
    for (const Bytes text : texts) {
      char* const begin = to;
      to = std::copy(text.begin(), text.end(), to);
      if (!little) {
        for (char* number = begin; number < to; number += item) std::reverse(number, number + item);
      }
      // A bool is 0 or 1, whatever the byte.
      if (type == Type::kBool) std::transform(begin, to, begin, [](char byte) { return byte != 0; });
    }
  };
}

}  // namespace

OperatorTable string_operators() {
  return {
      {"string_to_hash_bucket", hash_bucket<hash64>},
      {"string_to_hash_bucket_fast", hash_bucket<fingerprint64>},
      {"string_to_hash_bucket_strong", hash_bucket_strong},
      {"hash_bucket_fast", hash_bucket_fast},
      {"string_length", string_length},
      {"string_strip", plain<string_strip>},
      {"string_join", string_join},
      {"substr", substr},
      {"decode_raw", decode_raw},
  };
}

}  // namespace jaxrank::host
