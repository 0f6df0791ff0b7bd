// The codecs on CPUs, a row at a time.
#pragma once

#include <stdlib.h>

#include "packing.h"
#include "passes.h"

// Arrays of a pass are the same array or do not overlap at all.
#define PDADMM_ELEMENTWISE _Pragma("GCC ivdep")
#define PDADMM_INLINE inline __attribute__((always_inline))

namespace PDADMM_NAMESPACE {
namespace {

template <class T>
struct Buffer {
  T *data;
  explicit Buffer(int64_t n) : data((T *)malloc((size_t)(n > 0 ? n : 1) * sizeof(T))) {
    if (!data) abort();
  }
  ~Buffer() { free(data); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
};

PDADMM_FN int largest_magnitude(const float *x, int64_t n) {
  int most = 0;
  for (int64_t i = 0; i < n; ++i) {
    int m = magnitude(x[i]);
    most = m > most ? m : most;
  }
  return most;
}

struct Extremes {
  float least, greatest;
  bool finite;
};

// As unsigned integers the bits of negative floats are above all others and grow with the magnitude: three
// extremes tell the least and the greatest entry, and NaN and Inf. The sign of a zero, which they do not
// order, is dropped by affine_low and affine_scale.
PDADMM_FN Extremes extremes(const float *x, int64_t n) {
  if (n == 0) return {0.0f, 0.0f, true};
  u32 most = bits_of(x[0]), fewest = most;
  int greatest = (int)most;
  for (int64_t j = 1; j < n; ++j) {
    const u32 b = bits_of(x[j]);
    most = b > most ? b : most;
    fewest = b < fewest ? b : fewest;
    greatest = (int)b > greatest ? (int)b : greatest;
  }
  return {float_of((int)most < 0 ? most : fewest), float_of(greatest < 0 ? fewest : (u32)greatest),
          greatest < INFINITE && most < 0x80000000u + (u32)INFINITE};
}

// In ascending order. memcpy copies backwards where both sides have nearly the same place in a page, as large
// arrays have: rows of a matrix then come at a third of the speed.
PDADMM_FN void copy_row(const float *from, float *to, int64_t n) {
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) __builtin_memcpy(to + j, from + j, 64);
  __builtin_memcpy(to + j, from + j, (size_t)(n - j) * 4);
}

class RowCodec {
 public:
  RowCodec(const Coding &c, const Shape &s, int64_t key = 0)
      : kind_(c.kind), bits_((int)c.bits), rows_(s.rows), cols_(s.cols),
        blocks_(c.kind == DELTA ? (s.cols + TILE - 1) / TILE : 0), whole_(s.cols / TILE * TILE),
        width_(packed_bytes(s.cols, c.bits)), low_((float)c.low), step_((float)c.step), key_((u32)key),
        largest_(blocks_), units_(blocks_), inverses_(blocks_) {}

  // hat from the message's row
  void decode(const u8 *message, int64_t row, float *hat) {
    if (kind_ == FLOAT32) copy_row((const float *)(message + row * width_), hat, cols_);
    if (kind_ != DELTA && bits_ == 8) decode_linear<8>(message, row, hat);
    if (kind_ != DELTA && bits_ == 4) decode_linear<4>(message, row, hat);
    if (kind_ != DELTA && bits_ == 2) decode_linear<2>(message, row, hat);
    if (kind_ == DELTA && bits_ == 8) decode_delta<8>(message, row, hat);
    if (kind_ == DELTA && bits_ == 4) decode_delta<4>(message, row, hat);
    if (kind_ == DELTA && bits_ == 2) decode_delta<2>(message, row, hat);
    if (kind_ == DELTA && bits_ == 1) decode_delta<1>(message, row, hat);
  }

  // The message's row from x, and hat as its receiver will have it. Returns whether x is finite.
  bool encode(const float *x, int64_t row, float *hat, u8 *out) {
    if (kind_ == GRID && bits_ == 8) return encode_grid<8>(x, row, hat, out);
    if (kind_ == GRID && bits_ == 4) return encode_grid<4>(x, row, hat, out);
    if (kind_ == GRID && bits_ == 2) return encode_grid<2>(x, row, hat, out);
    if (kind_ == AFFINE && bits_ == 8) return encode_affine<8>(x, row, hat, out);
    if (kind_ == AFFINE && bits_ == 4) return encode_affine<4>(x, row, hat, out);
    if (kind_ == AFFINE && bits_ == 2) return encode_affine<2>(x, row, hat, out);
    if (kind_ == DELTA && bits_ == 8) return encode_delta<8>(x, row, hat, out);
    if (kind_ == DELTA && bits_ == 4) return encode_delta<4>(x, row, hat, out);
    if (kind_ == DELTA && bits_ == 2) return encode_delta<2>(x, row, hat, out);
    if (kind_ == DELTA && bits_ == 1) return encode_delta<1>(x, row, hat, out);
    copy_row(x, (float *)(out + row * width_), cols_);
    if (hat != x) copy_row(x, hat, cols_);
    return largest_magnitude(x, cols_) < INFINITE;
  }

  // Nearest grid values of x; the row itself for the other codecs.
  void project(float *x) {
    if (kind_ != GRID) return;
    const float inverse = 1.0f / step_, top = (float)((1 << bits_) - 1), low = low_, step = step_;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < cols_; ++j) {
      // NaN and Inf stay, for encode to find
      float value = grid_value(grid_code(x[j], low, inverse, top), low, step);
      x[j] = magnitude(x[j]) < INFINITE ? value : x[j];
    }
  }

 private:
  u8 *packed_row(const u8 *message, int64_t row) const {
    const int64_t header = kind_ == AFFINE ? 4 * rows_ : 2 * rows_ * blocks_;
    return (u8 *)message + header + row * width_;
  }

  // ---- tile by tile -------------------------------------------------------------------------------

  // A row's last columns, filled up to a tile with zeros.
  void load_rest(float *rest, const float *row) const {
    const int64_t columns = cols_ - whole_;
    if (!columns) return;
    __builtin_memcpy(rest, row + whole_, (size_t)columns * 4);
    __builtin_memset(rest + columns, 0, (size_t)(TILE - columns) * 4);
  }

  // Where the tile at a column is: in the row, or in the copy of its last columns.
  template <class T>
  PDADMM_INLINE T *tile(T *row, T *rest, int64_t start) const {
    return start < whole_ ? row + start : rest;
  }

  // For every tile quantise(start, x, hat, codes), which sets hat too, and the codes packed.
  // The last columns of x, and of hat where it is read, are loaded already.
  template <int BITS, class Quantise>
  PDADMM_INLINE void encode_tiles(const float *x, float *hat, u8 *packed, Quantise quantise) {
    u8 room[TILE], last[TILE * BITS / 8];
    for (int64_t start = 0; start < cols_; start += TILE) {
      u8 *bytes = start < whole_ ? packed + start * BITS / 8 : last, *codes = BITS < 8 ? room : bytes;
      quantise(start, tile(x, (const float *)x_rest_, start), tile(hat, hat_rest_, start), codes);
      if constexpr (BITS < 8) pack_tile<BITS>(codes, bytes);
    }
    if (const int64_t columns = cols_ - whole_) {
      const int64_t bytes = packed_bytes(columns, BITS);
      if (const int used = (int)(columns * BITS % 8)) last[bytes - 1] &= (u8)((1 << used) - 1);
      __builtin_memcpy(packed + whole_ * BITS / 8, last, (size_t)bytes);
      __builtin_memcpy(hat + whole_, hat_rest_, (size_t)columns * 4);
    }
  }

  // For every tile value(start, codes, hat), which adds to hat or replaces it.
  template <int BITS, bool ADDS, class Value>
  PDADMM_INLINE void decode_tiles(const u8 *packed, float *hat, Value value) {
    u8 room[TILE], last[TILE * BITS / 8];
    const int64_t columns = cols_ - whole_;
    for (int64_t start = 0; start < cols_; start += TILE) {
      const u8 *bytes = packed + start * BITS / 8;
      if (start == whole_) {
        __builtin_memcpy(last, bytes, (size_t)packed_bytes(columns, BITS));
        bytes = last;
        if (ADDS) load_rest(hat_rest_, hat);
      }
      if constexpr (BITS < 8) unpack_tile<BITS>(bytes, room);
      value(start, BITS < 8 ? room : bytes, tile(hat, hat_rest_, start));
    }
    __builtin_memcpy(hat + whole_, hat_rest_, (size_t)columns * 4);
  }

  // ---- grid and affine ----------------------------------------------------------------------------

  static auto linear(float low, float step) {
    return [=](int64_t, const u8 *codes, float *hat) {
      PDADMM_ELEMENTWISE
      for (int j = 0; j < TILE; ++j) hat[j] = grid_value((float)codes[j], low, step);
    };
  }

  // The encoders are not inlined, so that they do not know bits_: with a known bound a clamp would become a
  // branch over what is computed from it.
  float top() const { return (float)((1 << bits_) - 1); }

  template <int BITS>
  __attribute__((noinline)) bool encode_grid(const float *x, int64_t row, float *hat, u8 *out) {
    const float inverse = 1.0f / step_, most = top(), low = low_, step = step_;
    const bool finite = largest_magnitude(x, cols_) < INFINITE;  // now, since hat may be x
    load_rest(x_rest_, x);
    encode_tiles<BITS>(
        x, hat, packed_row(out, row),
        [=](int64_t, const float *from, float *to, u8 *codes) {
          PDADMM_ELEMENTWISE
          for (int j = 0; j < TILE; ++j) {
            const float code = grid_code(from[j], low, inverse, most);
            codes[j] = (u8)(int)code;
            to[j] = grid_value(code, low, step);
          }
        });
    return finite;
  }

  template <int BITS>
  __attribute__((noinline)) bool encode_affine(const float *x, int64_t row, float *hat, u8 *out) {
    const Extremes row_extremes = extremes(x, cols_);
    u16 *heads = (u16 *)out;
    const float last = top();
    heads[row] = affine_low(row_extremes.least);
    const float low = half_value(heads[row]);
    heads[rows_ + row] = affine_scale(row_extremes.greatest, low, last);
    const float scale = half_value(heads[rows_ + row]), inverse = inverse_scale(scale, 1.0f);
    const u32 first = (u32)(row * cols_), key = key_;
    load_rest(x_rest_, x);
    encode_tiles<BITS>(
        x, hat, packed_row(out, row),
        [=](int64_t start, const float *from, float *to, u8 *codes) {
          const u32 seed = uniform_seed(key, first + (u32)start);
          PDADMM_ELEMENTWISE
          for (int j = 0; j < TILE; ++j) {
            const float r = uniform_from(seed + (u32)j * UNIFORM_STRIDE);
            const int code = affine_code(from[j], low, inverse, last, r);
            codes[j] = (u8)code;
            to[j] = affine_value((float)code, low, scale);
          }
        });
    return row_extremes.finite;
  }

  template <int BITS>
  void decode_linear(const u8 *message, int64_t row, float *hat) {
    const u16 *heads = (const u16 *)message;
    const float low = kind_ == GRID ? low_ : half_value(heads[row]);
    const float step = kind_ == GRID ? step_ : half_value(heads[rows_ + row]);
    decode_tiles<BITS, false>(packed_row(message, row), hat, linear(low, step));
  }

  // ---- delta: a block is a tile -------------------------------------------------------------------

  template <int BITS>
  static auto changes(const u16 *scales) {
    return [=](int64_t start, const u8 *codes, float *hat) {
      const float scale = half_value(scales[start / TILE]), top = delta_top(BITS), per_level = 1.0f / top;
      PDADMM_ELEMENTWISE
      for (int j = 0; j < TILE; ++j)
        hat[j] += BITS == 1   ? delta_value1(codes[j], scale)
                  : BITS == 2 ? delta_value2((float)codes[j], scale)
                              : delta_value((float)codes[j], scale, top, per_level);
    };
  }

  // A step is done for all blocks of the row before the next one: within a block each waits for the last.
  template <int BITS>
  bool encode_delta(const float *x, int64_t row, float *hat, u8 *out) {
    u16 *scales = (u16 *)out + row * blocks_;
    int *largest = largest_.data, most = 0;
    const float *inverses = inverses_.data;
    for (int64_t b = 0, start = 0; b < blocks_; ++b, start += TILE) {
      if (start == whole_) {  // not before, so that memory is read in order
        load_rest(x_rest_, x);
        load_rest(hat_rest_, hat);
      }
      largest[b] = largest_change(tile(x, (const float *)x_rest_, start), tile(hat, hat_rest_, start));
      most = largest[b] > most ? largest[b] : most;
    }
    if (BITS <= 2)
      for (int64_t b = 0, start = 0; b < blocks_; ++b, start += TILE)
        units_.data[b] = change_units(tile(x, (const float *)x_rest_, start), tile(hat, hat_rest_, start),
                                      delta_unit_inverse(delta_exponent(largest[b])));
    for (int64_t b = 0; b < blocks_; ++b) scales[b] = set_scale<BITS>(b);
    const auto add_changes = changes<BITS>(scales);
    encode_tiles<BITS>(
        x, hat, packed_row(out, row), [=](int64_t start, const float *from, float *to, u8 *codes) {
          const float inverse = inverses[start / TILE], top = delta_top(BITS);
          PDADMM_ELEMENTWISE
          for (int j = 0; j < TILE; ++j) {
            const float change = from[j] - to[j];
            codes[j] = (u8)(BITS == 1   ? delta_code1(change)
                            : BITS == 2 ? delta_code2(change, inverse)
                                        : (int)delta_code(change, inverse, top));
          }
          add_changes(start, codes, to);
        });
    // finite changes are those of finite entries, but they may overflow too
    return most < INFINITE || largest_magnitude(x, cols_) < INFINITE;
  }

  template <int BITS>
  void decode_delta(const u8 *message, int64_t row, float *hat) {
    decode_tiles<BITS, true>(packed_row(message, row), hat, changes<BITS>((const u16 *)message + row * blocks_));
  }

  // Not inlined: its loop over few blocks would be vectorised.
  template <int BITS>
  __attribute__((noinline)) u16 set_scale(int64_t b) {
    const int64_t count = (b + 1) * TILE <= cols_ ? TILE : cols_ - whole_;
    const int largest = largest_.data[b];
    const float mean = BITS <= 2 ? delta_mean(units_.data[b], count, delta_exponent(largest)) : 0.0f;
    const u16 half = delta_scale(BITS, float_of((u32)largest), mean);
    inverses_.data[b] = inverse_scale(half_value(half), delta_levels(BITS));
    return half;
  }

  PDADMM_FN int largest_change(const float *x, const float *hat) {
    int most = 0;
    for (int j = 0; j < TILE; ++j) {
      const int m = magnitude(x[j] - hat[j]);
      most = m > most ? m : most;
    }
    return most;
  }

  // 128 sizes of up to 2^23 units fit an int; those of NaN and Inf, which are refused afterwards, may not
  PDADMM_FN int change_units(const float *x, const float *hat, float unit_inverse) {
    u32 units = 0;
    for (int j = 0; j < TILE; ++j) units += (u32)delta_units(x[j] - hat[j], unit_inverse);
    return (int)units;
  }

  const int64_t kind_;
  const int bits_;
  const int64_t rows_, cols_, blocks_, whole_, width_;
  const float low_, step_;
  const u32 key_;
  Buffer<int> largest_, units_;
  Buffer<float> inverses_;
  float x_rest_[TILE], hat_rest_[TILE];
};

}  // namespace
}  // namespace PDADMM_NAMESPACE
