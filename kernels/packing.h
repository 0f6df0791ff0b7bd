// Codes of 8, 4, 2 or 1 bits, a byte each, into bytes and back. The first column takes the lowest bits
// of the first byte.
#pragma once

#include <cstdint>

#include "arithmetic.h"

namespace PDADMM_NAMESPACE {
namespace {

// Columns of a tile. Loops over one have a length that the compiler knows: they are vectorised without
// tails, which would cost as much as the rest. What a row has beyond its last tile is done in a tile of
// its own and copied.
const int64_t TILE = 128;

PDADMM_FN int64_t packed_bytes(int64_t cols, int64_t bits) { return (cols * bits + 7) / 8; }

// Two neighbouring codes, the first in the lower byte, are joined into one of twice the bits until a byte
// is full. A loop of few steps that is unrolled is not vectorised.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "messages are little-endian");
typedef u16 Pair __attribute__((may_alias, aligned(1)));

template <int BITS, int COUNT = TILE>
PDADMM_FN void pack_tile(const u8 *codes, u8 *packed) {
  const Pair *pairs = (const Pair *)codes;
  u8 room[COUNT / 2], *joined = BITS == 4 ? packed : room;
#pragma GCC unroll 1
  for (int i = 0; i < COUNT / 2; ++i) joined[i] = (u8)(pairs[i] | pairs[i] >> (8 - BITS));
  if constexpr (BITS < 4) pack_tile<2 * BITS, COUNT / 2>(joined, packed);
}

template <int BITS, int COUNT = TILE>
PDADMM_FN void unpack_tile(const u8 *packed, u8 *codes) {
  const Pair lowest = (Pair)(0x0101 * ((1 << BITS) - 1));
  Pair *pairs = (Pair *)codes;
  u8 room[COUNT / 2];
  if constexpr (BITS < 4) unpack_tile<2 * BITS, COUNT / 2>(packed, room);
  const u8 *joined = BITS == 4 ? packed : room;
  for (int i = 0; i < COUNT / 2; ++i) pairs[i] = (Pair)((joined[i] | joined[i] << (8 - BITS)) & lowest);
}

}  // namespace
}  // namespace PDADMM_NAMESPACE
