// Reads serialized tf.Example messages without copying a byte of them.
#pragma once

#include "operator.h"

namespace jaxrank::host {

enum class ListKind : uint8_t { kNone, kBytes, kFloat, kInt64 };
const char* name_of(ListKind kind);  // as in the message's definition

// The values of one feature. Of a message in several pieces they are the values of all pieces.
struct FeatureValues {
  struct Piece {
    Bytes list;  // a serialized BytesList, FloatList or Int64List
    Piece* next;
  };
  ListKind kind = ListKind::kNone;
  int64_t count = 0;
  Piece* first = nullptr;
  Piece* last = nullptr;

  // Write `count` values.
  void write(Bytes* out) const;
  void write(float* out) const;
  void write(int64_t* out) const;
};

// Calls `give(key, values)` for every feature of an example, in order; of a repeated key the last one counts. False if the bytes
// are no tf.Example. `Give` may keep the values until the end of the request.
using GiveFeature = std::function<void(Bytes key, const FeatureValues& values)>;
bool read_example(Call& call, Bytes serialized, const GiveFeature& give);

}  // namespace jaxrank::host
