// cuBLAS's product by its own declaration (cublas_api.h), on host memory and in float32.
#include <stddef.h>

static void *stream_now, *workspace;

int cublasCreate_v2(void **handle) {
  *handle = &stream_now;
  return 0;
}
int cublasSetStream_v2(void *handle, void *stream) {
  stream_now = stream;
  workspace = NULL;
  return handle != &stream_now;
}
int cublasSetWorkspace_v2(void *handle, void *given, size_t bytes) {
  workspace = given;
  return handle != &stream_now || bytes < 1024;
}
int cublasGemmEx(void *handle, int transa, int transb, int m, int n, int k, const void *alpha, const void *A,
                 int Atype, int lda, const void *B, int Btype, int ldb, const void *beta, void *C, int Ctype,
                 int ldc, int computeType, int algo) {
  if (handle != &stream_now || !workspace || Atype || Btype || Ctype || computeType != 68 || algo != -1) return 13;
  const float *a = A, *b = B;
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < m; ++i) {
      float sum = 0.0f, *c = (float *)C + i + (size_t)j * ldc;
      for (int l = 0; l < k; ++l) sum += a[transa ? l + i * lda : i + l * lda] * b[transb ? j + l * ldb : l + j * ldb];
      *c = *(const float *)alpha * sum + (*(const float *)beta ? *(const float *)beta * *c : 0.0f);
    }
  return 0;
}
