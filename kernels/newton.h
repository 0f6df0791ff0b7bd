// z-update of the output layer on CPUs: argmin cross-entropy(z; y) + nu/2 |z - a|^2 of every node, by damped
// Newton from z.
#pragma once

#include <math.h>

#include "row_codec.h"

namespace PDADMM_NAMESPACE {
namespace {

// Nodes side by side, each in a lane of the registers: a few classes would not fill them. A node's operations
// are in the order in which it would do them alone.
const int NODES = 16;
// Not unrolled, since the lanes of a loop that is unrolled are not joined again.
#define PDADMM_LANE_BY_LANE _Pragma("GCC ivdep") _Pragma("GCC unroll 1") for (int i = 0; i < NODES; ++i)

class Newton {
 public:
  explicit Newton(int64_t classes) : classes_(classes), room_(4 * classes * NODES) {}

  // z of up to NODES nodes; a and z are (nodes, classes)
  void solve(const float *a, float *z, const int64_t *y, float nu, int nodes) {
    const int64_t n = classes_;
    float *A = room_.data, *Z = A + n * NODES;
    for (int i = 0; i < NODES; ++i) {
      open_[i] = i < nodes;
      label_[i] = i < nodes ? (int)y[i] : 0;
      for (int64_t j = 0; j < n; ++j) {
        A[j * NODES + i] = i < nodes ? a[i * n + j] : 0.0f;
        Z[j * NODES + i] = i < nodes ? z[i * n + j] : 0.0f;
      }
    }
    for (int iteration = 0; iteration < 50 && step(A, Z, nu); ++iteration) {
    }
    for (int i = 0; i < nodes; ++i)
      for (int64_t j = 0; j < n; ++j) z[i * n + j] = Z[j * NODES + i];
  }

 private:
  // Returns whether a node has moved.
  bool step(const float *A, float *Z, float nu) {
    const int64_t n = classes_;
    float *S = Z + n * NODES, *D = S + n * NODES;
    alignas(64) int top[NODES], far[NODES], moved[NODES];
    alignas(64) float peak[NODES], total[NODES], along[NODES], denominator[NODES], most[NODES], least[NODES];
    PDADMM_LANE_BY_LANE top[i] = ordered(Z[i]);
    for (int64_t j = 1; j < n; ++j) {
      const float *z = Z + j * NODES;
      PDADMM_LANE_BY_LANE top[i] = ordered(z[i]) > top[i] ? ordered(z[i]) : top[i];
    }
    PDADMM_LANE_BY_LANE {
      peak[i] = from_ordered(top[i]);
      total[i] = along[i] = denominator[i] = 0.0f;
      far[i] = moved[i] = 0;
      most[i] = -HUGE_VALF;
      least[i] = HUGE_VALF;
    }
    for (int64_t j = 0; j < n; ++j) {
      const float *z = Z + j * NODES;
      float *s = S + j * NODES;
      PDADMM_LANE_BY_LANE {
        s[i] = exp_nonpositive(z[i] - peak[i]);
        total[i] += s[i];
      }
    }
    // (diag(s + nu) - s s^T)^-1 g by Sherman-Morrison (updates.z_last_cross_entropy)
    for (int64_t j = 0; j < n; ++j) {
      const float *z = Z + j * NODES, *a = A + j * NODES;
      float *s = S + j * NODES, *d = D + j * NODES;
      PDADMM_LANE_BY_LANE {
        const float share = s[i] / total[i];
        const float g = (share - (label_[i] == j ? 1.0f : 0.0f)) + nu * (z[i] - a[i]);
        d[i] = g / (share + nu);
        s[i] = share / (share + nu);
        along[i] += (z[i] - a[i]) - d[i];
        denominator[i] += s[i];
      }
    }
    PDADMM_LANE_BY_LANE along[i] /= denominator[i];
    for (int64_t j = 0; j < n; ++j) {
      const float *z = Z + j * NODES, *s = S + j * NODES;
      float *d = D + j * NODES;
      PDADMM_LANE_BY_LANE {
        d[i] += s[i] * along[i];
        far[i] |= newton_goes_on(d[i], z[i]);
        most[i] = larger(most[i], d[i]);
        least[i] = smaller(least[i], d[i]);
      }
    }
    alignas(64) float damping[NODES] = {};
    for (int i = 0; i < NODES; ++i) {
      const float spread = most[i] - least[i];
      if (open_[i]) damping[i] = newton_damping(spread, log1pf(spread));
    }
    for (int64_t j = 0; j < n; ++j) {
      const float *d = D + j * NODES;
      float *z = Z + j * NODES;
      PDADMM_LANE_BY_LANE {
        const float next = open_[i] ? z[i] - damping[i] * d[i] : z[i];
        moved[i] |= next != z[i];
        z[i] = next;
      }
    }
    int any = 0;
    for (int i = 0; i < NODES; ++i) any |= open_[i] = moved[i] && far[i];
    return any;
  }

  const int64_t classes_;
  Buffer<float> room_;
  alignas(64) int open_[NODES], label_[NODES];
};

}  // namespace
}  // namespace PDADMM_NAMESPACE
