// Messages of chosen rows on CPUs (pdadmm/codec/rows.py has their form), a row at a time.
#pragma once

#include <type_traits>

#include "graph.h"
#include "graph_arithmetic.h"
#include "row_codec.h"

namespace PDADMM_NAMESPACE {
namespace {

class RowMessage {
 public:
  RowMessage(const Shape &s, int64_t bits, int64_t exponent, int64_t key = 0)
      : bits_((int)bits), rows_(s.rows), cols_(s.cols), width_(packed_bytes(s.cols, bits)),
        top_((float)((1 << bits) - 1)), up_(power_of_two((int)exponent)), down_(power_of_two(-(int)exponent)),
        key_((u32)key) {}

  // Heads of the rows [first, last), many at a time: narrow rows cost no more than their heads. The least and
  // the greatest entries become what codes want: the minimum in the head and the inverse of its scale.
  __attribute__((noinline)) void heads(float *least, float *greatest, int64_t first, int64_t last,
                                       u8 *out) const {
    u16 *lows = (u16 *)(out + 4), *scales = lows + rows_;
    const float down = down_, top = top_;
    PDADMM_ELEMENTWISE
    for (int64_t row = first; row < last; ++row) {
      const u16 low = affine_low(least[row] * down);
      const u16 scale = affine_scale(greatest[row] * down, half_value(low), top);
      lows[row] = low;
      scales[row] = scale;
      least[row] = half_value(low);
      greatest[row] = inverse_scale(half_value(scale), 1.0f);
    }
  }

  // The codes of a row
  void encode(const float *x, float low, float inverse, int64_t row, u8 *out) const {
    u8 *packed = out + 4 + 4 * rows_ + row * width_;
    if (bits_ == 8) encode_row<8>(x, row, low, inverse, packed);
    if (bits_ == 4) encode_row<4>(x, row, low, inverse, packed);
    if (bits_ == 2) encode_row<2>(x, row, low, inverse, packed);
    if (bits_ == 1) encode_row<1>(x, row, low, inverse, packed);
  }

  void decode(const u8 *message, int64_t row, float *x) const {
    const u16 *heads = (const u16 *)(message + 4);
    const float low = half_value(heads[row]), scale = half_value(heads[rows_ + row]);
    const u8 *packed = message + 4 + 4 * rows_ + row * width_;
    if (bits_ == 8) decode_row<8>(packed, low, scale, x);
    if (bits_ == 4) decode_row<4>(packed, low, scale, x);
    if (bits_ == 2) decode_row<2>(packed, low, scale, x);
    if (bits_ == 1) decode_row<1>(packed, low, scale, x);
  }

 private:
  // What a row has beyond its last tile is done in a tile of its own, that is no longer than it must be: a
  // layer may send as few columns as there are classes.
  template <class Whole, class Rest>
  PDADMM_INLINE void in_tiles(Whole whole, Rest rest) const {
    int64_t start = 0;
    for (; start + TILE <= cols_; start += TILE) whole(start);
    const int64_t left = cols_ - start;
    if (left > 64)
      rest(start, std::integral_constant<int, 128>());
    else if (left > 32)
      rest(start, std::integral_constant<int, 64>());
    else if (left > 16)
      rest(start, std::integral_constant<int, 32>());
    else if (left > 0)
      rest(start, std::integral_constant<int, 16>());
  }

  // Not inlined, as the encoders of RowCodec
  template <int BITS>
  __attribute__((noinline)) void encode_row(const float *x, int64_t row, float low, float inverse,
                                            u8 *packed) const {
    const u32 seed = uniform_seed(key_, (u32)(row * cols_));
    in_tiles(
        [&](int64_t start) {
          encode_tile<BITS, TILE>(x + start, low, inverse, seed + (u32)start * UNIFORM_STRIDE,
                                  packed + start * BITS / 8);
        },
        [&](int64_t start, auto count) {
          const int64_t columns = cols_ - start, bytes = packed_bytes(columns, BITS);
          float room[decltype(count)::value] = {};
          u8 codes[decltype(count)::value * BITS / 8];
          __builtin_memcpy(room, x + start, (size_t)columns * 4);
          encode_tile<BITS, decltype(count)::value>(room, low, inverse, seed + (u32)start * UNIFORM_STRIDE,
                                                    codes);
          if (const int used = (int)(columns * BITS % 8)) codes[bytes - 1] &= (u8)((1 << used) - 1);
          __builtin_memcpy(packed + start * BITS / 8, codes, (size_t)bytes);
        });
  }

  template <int BITS, int COUNT>
  PDADMM_INLINE void encode_tile(const float *x, float low, float inverse, u32 seed, u8 *packed) const {
    u8 room[COUNT], *codes = BITS < 8 ? room : packed;
    const float top = top_, down = down_;
    PDADMM_ELEMENTWISE
    for (int j = 0; j < COUNT; ++j)
      codes[j] = (u8)affine_code(x[j] * down, low, inverse, top,
                                 uniform_from(seed + (u32)j * UNIFORM_STRIDE));
    if constexpr (BITS < 8) pack_tile<BITS, COUNT>(codes, packed);
  }

  template <int BITS>
  __attribute__((noinline)) void decode_row(const u8 *packed, float low, float scale, float *x) const {
    in_tiles(
        [&](int64_t start) { decode_tile<BITS, TILE>(packed + start * BITS / 8, low, scale, x + start); },
        [&](int64_t start, auto count) {
          const int64_t columns = cols_ - start;
          float room[decltype(count)::value];
          u8 codes[decltype(count)::value * BITS / 8] = {};
          __builtin_memcpy(codes, packed + start * BITS / 8, (size_t)packed_bytes(columns, BITS));
          decode_tile<BITS, decltype(count)::value>(codes, low, scale, room);
          __builtin_memcpy(x + start, room, (size_t)columns * 4);
        });
  }

  template <int BITS, int COUNT>
  PDADMM_INLINE void decode_tile(const u8 *packed, float low, float scale, float *x) const {
    u8 room[COUNT];
    const u8 *codes = BITS < 8 ? room : packed;
    const float up = up_;
    if constexpr (BITS < 8) unpack_tile<BITS, COUNT>(packed, room);
    PDADMM_ELEMENTWISE
    for (int j = 0; j < COUNT; ++j) x[j] = affine_value((float)codes[j], low, scale) * up;
  }

  const int bits_;
  const int64_t rows_, cols_, width_;
  const float top_, up_, down_;
  const u32 key_;
};

}  // namespace
}  // namespace PDADMM_NAMESPACE
