// Encode and decode alone, every codec and width: encode_delta4, decode_delta4, ...
#include "codec.cuh"

namespace pdadmm {

template <int KIND, int BITS>
PDADMM_FN void encode_rows(const float *x, float *hat, u8 *out, const RowCodec<KIND, BITS> &codec, int *bad) {
  const i64 cols = codec.cols;
  const bool wide = is_wide(cols);
  bool finite = true;
  for (i64 row = first_row(); row < codec.rows; row += row_stride()) {
    float base = 0.0f, scale = 0.0f;
    if (KIND == AFFINE) {
      Range range;
      for (i64 j = first_column(); j < cols; j += TILE) {
        float v[4];
        const int n = columns_left(cols, j);
        load4(x + row * cols + j, n, wide, v);
        range.add(v, n);
      }
      codec.head(range.least, range.greatest, row, out, base, scale);
    }
    for (i64 start = 0; start < cols; start += TILE) {
      const i64 j = start + first_column();
      const int n = columns_left(cols, j);
      float v[4], h[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      load4(x + row * cols + j, n, wide, v);
      if (KIND == DELTA) load4(hat + row * cols + j, n, wide, h);
      finite = finite && all_finite(v);
      codec.encode(v, row, j, n, out, base, scale, h);
      if (KIND != FLOAT32 || hat != x) store4(hat + row * cols + j, n, wide, h);
    }
  }
  if (!finite) *bad = 1;
}

template <int KIND, int BITS>
PDADMM_FN void decode_rows(const u8 *message, float *hat, const RowCodec<KIND, BITS> &codec) {
  const i64 cols = codec.cols;
  const bool wide = is_wide(cols);
  for (i64 row = first_row(); row < codec.rows; row += row_stride())
    for (i64 j = first_column(); j < cols; j += TILE) {
      const int n = columns_left(cols, j);
      float h[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (KIND == DELTA) load4(hat + row * cols + j, n, wide, h);
      codec.decode(message, row, j, n, h);
      store4(hat + row * cols + j, n, wide, h);
    }
}

}  // namespace pdadmm

#define PDADMM_KERNELS(name, KIND, BITS)                                                                     \
  extern "C" __global__ void __launch_bounds__(256) encode_##name(                                          \
      const float *x, float *hat, unsigned char *out, long long rows, long long cols, float low, float step, \
      unsigned key, int *bad) {                                                                              \
    using namespace pdadmm;                                                                                  \
    encode_rows(x, hat, out, RowCodec<KIND, BITS>{rows, cols, low, step, key}, bad);                         \
  }                                                                                                          \
  extern "C" __global__ void __launch_bounds__(256) decode_##name(                                          \
      const unsigned char *message, float *hat, long long rows, long long cols, float low, float step) {     \
    using namespace pdadmm;                                                                                  \
    decode_rows(message, hat, RowCodec<KIND, BITS>{rows, cols, low, step, 0});                               \
  }

PDADMM_CODECS(PDADMM_KERNELS)
