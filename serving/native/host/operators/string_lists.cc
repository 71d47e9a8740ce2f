// Operators that make lists of strings: pieces, joined dimensions, n-grams.

#include "../layout.h"

namespace jaxrank::host {

namespace {

// A sparse matrix of pieces: `each(text, f)` calls `f(piece)` for every piece of a string. It runs twice: to count, and to write.
template <typename Each>
void give_pieces(Call& call, const Tensor& texts, Each each) {
  int64_t total = 0, widest = 0;
  for (const Bytes text : texts.values<Bytes>()) {
    int64_t count = 0;
    each(text, [&](Bytes) { ++count; });
    total += count;
    widest = std::max(widest, count);
  }
  int64_t* indices = call.make<int64_t>(0, {total, 2});
  Bytes* pieces = call.make<Bytes>(1, {total});
  int64_t* shape = call.make<int64_t>(2, {2});
  shape[0] = texts.count, shape[1] = widest;
  int64_t row = 0;
  for (const Bytes text : texts.values<Bytes>()) {
    int64_t column = 0;
    each(text, [&](Bytes piece) {
      *indices++ = row, *indices++ = column++;
      *pieces++ = piece;
    });
    ++row;
  }
}

// Every byte of the delimiter delimits; an empty one cuts after each byte.
Kernel string_split(const Attributes& attributes, const Resources&) {
  return [skip_empty = attributes.flag("skip_empty")](Call& call) {
    const Tensor &texts = call.in(0), &delimiter = call.in(1);
    check(texts.rank() == 1 && delimiter.rank() == 0, "string_split takes a vector and a scalar delimiter");
    const Bytes marks = delimiter.as<Bytes>()[0];
    give_pieces(call, texts, [&](Bytes text, auto give) {
      if (marks.empty()) {
        for (size_t i = 0; i < text.size(); ++i) give(text.substr(i, 1));
        return;
      }
      if (text.empty()) return;
      for (size_t from = 0; from <= text.size();) {
        const size_t to = std::min(text.find_first_of(marks, from), text.size());
        if (to > from || !skip_empty) give(text.substr(from, to - from));
        from = to + 1;
      }
    });
  };
}

bool is_space(char c) { return c == ' ' || ('\t' <= c && c <= '\r'); }

// Pieces between runs of white space, at most `limit` cuts; TensorFlow adds what is left after the last cut, be it empty.
template <typename Give>
void split_on_space(Bytes text, int64_t limit, Give give) {
  size_t at = 0;
  const auto skip = [&] {
    while (at < text.size() && is_space(text[at])) ++at;
  };
  for (int64_t cuts = 0; limit < 0 || cuts < limit; ++cuts) {
    skip();
    if (at == text.size()) return;
    const size_t from = at;
    while (at < text.size() && !is_space(text[at])) ++at;
    give(text.substr(from, at - from));
    if (cuts + 1 == limit) {
      skip();
      // Python leaves the rest's trailing white space, and so does TensorFlow.
      give(text.substr(at));
    }
  }
}

template <typename Give>
void split_on(Bytes text, Bytes separator, int64_t limit, Give give) {
  for (int64_t cuts = 0; limit < 0 || cuts < limit; ++cuts) {
    const size_t at = text.find(separator);
    if (at == Bytes::npos) break;
    give(text.substr(0, at));
    text.remove_prefix(at + separator.size());
  }
  give(text);
}

// As Python's `bytes.split`; an empty separator means runs of white space.
Kernel string_split_v2(const Attributes& attributes, const Resources&) {
  return [limit = attributes.integer("maxsplit")](Call& call) {
    const Tensor &texts = call.in(0), &sep = call.in(1);
    check(texts.rank() == 1 && sep.rank() == 0, "string_split_v2 takes a vector and a scalar separator");
    const Bytes separator = sep.as<Bytes>()[0];
    give_pieces(call, texts, [&](Bytes text, auto give) {
      if (limit == 0) give(text);
      else if (separator.empty()) split_on_space(text, limit, give);
      else split_on(text, separator, limit, give);
    });
  };
}

// Joined over dimensions, in the order in which they are named; no dimension named joins nothing.
Kernel reduce_join(const Attributes& attributes, const Resources&) {
  return [keep_dims = attributes.flag("keep_dims"), separator = attributes.text("separator")](Call& call) {
    const Tensor &inputs = call.in(0), &named = call.in(1);
    const Strides own = row_major(inputs.shape);
    bool joined[kMaxRank] = {};
    Shape within;  // the joined dimensions, the last one named varying slowest
    Strides steps{};
    check(named.count <= inputs.rank(), named.count, " dimensions of ", inputs.rank(), " to join");
    for (int64_t i = named.count - 1; i >= 0; --i) {
      const int axis = axis_of(integer_at(named, i), inputs.rank());
      check(!joined[axis], "dimension ", axis, " is named twice");
      joined[axis] = true;
      steps[within.rank()] = own[axis];
      within.push_back(inputs.shape[axis]);
    }
    Shape kept, shape;
    Strides strides{};
    for (int i = 0; i < inputs.rank(); ++i) {
      if (joined[i]) {
        if (keep_dims) shape.push_back(1);
        continue;
      }
      shape.push_back(inputs.shape[i]);
      strides[kept.rank()] = own[i];
      kept.push_back(inputs.shape[i]);
    }
    const int64_t parts = within.count(), count = kept.count();
    auto* offsets = call.scratch<int64_t>(parts);
    for (int64_t i = 0; i < parts; ++i) {
      int64_t rest = i;
      offsets[i] = 0;
      for (int d = within.rank() - 1; d >= 0; --d) {
        offsets[i] += rest % within[d] * steps[d];
        rest /= within[d];
      }
    }
    Bytes* out = call.make<Bytes>(0, shape);
    const Bytes* texts = inputs.as<Bytes>();
    for (int64_t i = 0; i < count; ++i) {
      int64_t rest = i, base = 0;
      for (int d = kept.rank() - 1; d >= 0; --d) {
        base += rest % kept[d] * strides[d];
        rest /= kept[d];
      }
      size_t size = parts ? separator.size() * (parts - 1) : 0;
      for (int64_t p = 0; p < parts; ++p) size += texts[base + offsets[p]].size();
      char* const text = call.scratch<char>(static_cast<int64_t>(size));
      char* to = text;
      for (int64_t p = 0; p < parts; ++p) {
        if (p) to = std::copy(separator.begin(), separator.end(), to);
        const Bytes more = texts[base + offsets[p]];
        to = std::copy(more.begin(), more.end(), to);
      }
      out[i] = {text, size};
    }
  };
}

struct NGrams {
  std::string separator, left, right;
  std::vector<int64_t> widths;
  int64_t pad_width;
  bool preserve_short;

  // A pad wider than the n-gram less one would make n-grams of pads alone.
  int64_t pad(int64_t width) const { return pad_width >= 0 ? std::min(width - 1, pad_width) : width - 1; }
};

// A row with pads: `pad` left ones, the texts, `pad` right ones.
struct PaddedRow {
  const NGrams& grams;
  std::span<const Bytes> row;
  int64_t pad;
  int64_t size() const { return static_cast<int64_t>(row.size()) + 2 * pad; }
  Bytes operator[](int64_t i) const {
    if (i < pad) return grams.left;
    return i - pad < static_cast<int64_t>(row.size()) ? row[i - pad] : Bytes(grams.right);
  }
};

Bytes join_padded(Call& call, const PaddedRow& row, int64_t from, int64_t width) {
  const Bytes separator = row.grams.separator;
  size_t size = width ? separator.size() * (width - 1) : 0;
  for (int64_t i = 0; i < width; ++i) size += row[from + i].size();
  char* const text = call.scratch<char>(static_cast<int64_t>(size));
  char* to = text;
  for (int64_t i = 0; i < width; ++i) {
    if (i) to = std::copy(separator.begin(), separator.end(), to);
    const Bytes more = row[from + i];
    to = std::copy(more.begin(), more.end(), to);
  }
  return {text, size};
}

// Calls `f(padded row, from, width)` for each n-gram of a row: all of the first width before those of the next.
template <typename F>
void each_gram(const NGrams& grams, std::span<const Bytes> row, F f) {
  bool any = false;
  for (const int64_t width : grams.widths) {
    const PaddedRow padded{grams, row, grams.pad(width)};
    for (int64_t i = 0; i + width <= padded.size(); ++i) {
      f(padded, i, width);
      any = true;
    }
  }
  if (!grams.preserve_short || any || row.empty()) return;
  const PaddedRow padded{grams, row, grams.pad(*std::min_element(grams.widths.begin(), grams.widths.end()))};
  f(padded, 0, padded.size());
}

Kernel string_n_grams(const Attributes& attributes, const Resources&) {
  NGrams grams{attributes.text("separator"),   attributes.text("left_pad"),
               attributes.text("right_pad"),   attributes["ngram_widths"].integers(),
               attributes.integer("pad_width"), attributes.flag("preserve_short_sequences")};
  for (const int64_t width : grams.widths) {
    if (width <= 0) refuse<Unsupported>("n-grams of width ", width);
  }
  if (grams.widths.empty()) refuse<Unsupported>("n-grams of no width");
  return [grams](Call& call) {
    const Tensor &data = call.in(0), &splits = call.in(1);
    const int64_t rows = std::max<int64_t>(splits.count - 1, 0);
    const auto split = [&](int64_t i) { return integer_at(splits, i); };
    check(splits.count == 0 || split(0) == 0, "row splits must begin with 0");
    check(splits.count == 0 || split(splits.count - 1) == data.count, "row splits do not end with the number of strings");
    for (int64_t i = 0; i < rows; ++i) check(split(i) <= split(i + 1), "row splits decrease");
    const std::span<const Bytes> texts = data.values<Bytes>();
    const auto row = [&](int64_t i) { return texts.subspan(split(i), split(i + 1) - split(i)); };
    int64_t total = 0;
    for_index(splits.type, [&]<typename T>(std::type_identity<T>) {
      T* out = call.make<T>(1, {splits.count});
      if (splits.count) *out++ = 0;
      for (int64_t i = 0; i < rows; ++i) {
        each_gram(grams, row(i), [&](const PaddedRow&, int64_t, int64_t) { ++total; });
        *out++ = static_cast<T>(total);
      }
    });
    Bytes* out = call.make<Bytes>(0, {total});
    for (int64_t i = 0; i < rows; ++i) {
      each_gram(grams, row(i), [&](const PaddedRow& padded, int64_t from, int64_t width) {
        *out++ = join_padded(call, padded, from, width);
      });
    }
  };
}

}  // namespace

OperatorTable string_list_operators() {
  return {
      {"string_split", string_split},
      {"string_split_v2", string_split_v2},
      {"reduce_join", reduce_join},
      {"string_n_grams", string_n_grams},
  };
}

}  // namespace jaxrank::host
