// float32 split for products in bfloat16.

#define EXTERN extern "C" __global__ void

__device__ __forceinline__ unsigned bfloat16_nearest(float x) {
  unsigned b = __float_as_uint(x);
  return (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
}

// x = high + low + a remainder below 2^-16 |x|, high and low in bfloat16.
EXTERN split_bfloat16(const float *x, unsigned short *high, unsigned short *low, long long size) {
  long long stride = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += stride) {
    unsigned top = bfloat16_nearest(x[i]);
    high[i] = (unsigned short)top;
    low[i] = (unsigned short)bfloat16_nearest(x[i] - __uint_as_float(top << 16));
  }
}
