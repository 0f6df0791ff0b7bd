// What an iteration decides by a number, decided on the device.

#define EXTERN extern "C" __global__ void

// Length of a gradient step (pdadmm/admm/updates.py, step_length); one thread.
//
// `image` and `norm` are the squared norms of the direction's image and of the gradient. A norm that is
// not finite leaves the smallest label in `first_bad`: the host reads it when it next looks. A label is
// `label` plus `*moved`, since the arguments of an iteration that is launched again stay as they were.
EXTERN step_length(const double *image, const double *norm, double curvature, double weight, int doubling,
                   long long label, const long long *moved, double *length, long long *first_bad) {
  label += *moved;
  double n = *norm, i = *image;
  // x - x is NaN for Inf and NaN
  if (!(n - n == 0.0 && i - i == 0.0) && label < *first_bad) *first_bad = label;
  if (n == 0.0) {
    *length = 0.0;
    return;
  }
  double tau = curvature + weight * i / n;
  if (!doubling) {
    *length = tau == 0.0 ? 0.0 : 1.0 / tau;
    return;
  }
  double trial = 20.0;
  *length = 0.0;
  for (int k = 0; k <= 10; ++k, trial *= 2.0) {
    if (trial >= tau) {
      *length = 1.0 / trial;
      return;
    }
  }
}
