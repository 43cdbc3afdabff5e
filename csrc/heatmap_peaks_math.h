// From the largest cell of a map to a position between cells.
//
// quarter: a quarter of a cell towards the larger neighbour on each axis (Newell et al., ECCV
// 2016).
//
// dark (Zhang et al., CVPR 2020): let L be the logarithm of the map. That of a Gaussian is a
// paraboloid, so its Taylor expansion around the largest cell c ends after the second order:
//   L(c + d) = L(c) + D^T d + d^T H d / 2,  D: gradient, H: Hessian at c
// The gradient with respect to d is 0 at d = -H^-1 D, which with the inverse of a 2 x 2 matrix is
//   d_x = (L_xy L_y - L_yy L_x) / det,  d_y = (L_xy L_x - L_xx L_y) / det,
//   det = L_xx L_yy - L_xy^2
// Central differences give the derivatives, and are exact for a paraboloid. The map is blurred
// first: that reduces the noise of a network's map, and a blurred Gaussian is still a Gaussian with
// the same centre. Only the 13 cells that the differences use are blurred, not the map. If H does
// not describe a maximum (a ridge, or noise), there is no step and the caller takes `quarter`.
//
// A map is read through strides and needs `T at(int y, int x)`, `height` and `width`.
#pragma once

#include <cmath>

#include "portable.h"

namespace fasthg {

// The values are those of METHODS in fasthg/ops/heatmap_peaks.py.
enum PeakMethod : int { kArgmax = 0, kQuarter = 1, kDark = 2, kPlateau = 3 };

template <typename T>
struct Peak {
  T value;
  int cell;  // row-major; -1: no number seen
};

// The larger value wins, of equal ones the smaller cell. Callers never pass a NaN value.
template <typename T>
FASTHG_HD Peak<T> better_peak(Peak<T> a, Peak<T> b) {
  if (a.cell < 0) return b;
  if (b.cell < 0) return a;
  if (a.value == b.value) return a.cell < b.cell ? a : b;
  return a.value > b.value ? a : b;
}

template <typename T>
FASTHG_HD T quarter_step(T before, T after) {
  return after > before ? T(0.25) : after < before ? T(-0.25) : T(0);
}

// A quarter of a cell towards the larger neighbour (Newell et al., ECCV 2016).
template <typename T, typename Map>
FASTHG_HD void quarter_offset(const Map& map, int x, int y, T* dx, T* dy) {
  *dx = x > 0 && x < map.width - 1 ? quarter_step(map.at(y, x - 1), map.at(y, x + 1)) : T(0);
  *dy = y > 0 && y < map.height - 1 ? quarter_step(map.at(y - 1, x), map.at(y + 1, x)) : T(0);
}

// DARK; see the head of this file.
constexpr int kBlurRadius = 3;      // 3 sigma of the blur
constexpr int kStencilRadius = 2;   // central second differences with a step of 1, applied twice
constexpr int kStencilPoints = 13;  // cells within a city-block distance of 2
constexpr double kMinimumCurvature = 1e-6;    // sigma of 1000 cells; float noise is below
constexpr double kMinimumDeterminant = 1e-3;  // relative to dxx * dyy: no ridge
constexpr double kMaximumStep = 1.0;          // cells; a true peak is less than 1 away

// Point k of the stencil, in reading order: rows of 1, 3, 5, 3 and 1 cells.
FASTHG_HD void stencil_point(int k, int* dx, int* dy) {
  *dy = k < 1 ? -2 : k < 4 ? -1 : k < 9 ? 0 : k < 12 ? 1 : 2;
  const int middle = *dy == -2 ? 0 : *dy == 2 ? 12 : 6 + 4 * *dy;
  *dx = k - middle;
}

FASTHG_HD bool stencil_fits(int x, int y, int width, int height) {
  return x >= kStencilRadius && x < width - kStencilRadius && y >= kStencilRadius &&
         y < height - kStencilRadius;
}

// exp(-d^2 / 2), written as selects: an indexed table would live in a GPU's local memory.
template <typename T>
FASTHG_HD T blur_weight(int d) {
  d = d < 0 ? -d : d;
  return d == 0   ? T(1)
         : d == 1 ? T(0.60653065971263342)
         : d == 2 ? T(0.13533528323661270)
                  : T(0.011108996538242306);
}

// Logarithm of the blurred map at one cell; NaN where the blurred value is not positive. Taps
// outside the map are left out and the others renormalised: zeros there would shift the peak
// inwards.
template <typename T, typename Map>
FASTHG_HD T log_blurred(const Map& map, int x, int y) {
  T sum = 0, total = 0;
  for (int dy = -kBlurRadius; dy <= kBlurRadius; ++dy) {
    if (y + dy < 0 || y + dy >= map.height) continue;
    for (int dx = -kBlurRadius; dx <= kBlurRadius; ++dx) {
      if (x + dx < 0 || x + dx >= map.width) continue;
      const T w = blur_weight<T>(dy) * blur_weight<T>(dx);
      sum += w * map.at(y + dy, x + dx);
      total += w;
    }
  }
  return sum > 0 ? std::log(sum / total) : T(NAN);
}

template <typename T>
FASTHG_HD T clamp_step(T step) {
  const T most = T(kMaximumStep);
  return step > most ? most : step < -most ? -most : step;
}

// h: log_blurred at the 13 stencil points. Returns false and sets no step where h has no maximum.
template <typename T>
FASTHG_HD bool dark_offset(const T* h, T* step_x, T* step_y) {
  const T dx = (h[7] - h[5]) / 2;
  const T dy = (h[10] - h[2]) / 2;
  const T dxx = (h[8] - 2 * h[6] + h[4]) / 4;
  const T dyy = (h[12] - 2 * h[6] + h[0]) / 4;
  const T dxy = (h[11] - h[3] - h[9] + h[1]) / 4;
  const T determinant = dxx * dyy - dxy * dxy;
  const bool maximum = dxx < -T(kMinimumCurvature) && dyy < -T(kMinimumCurvature) &&
                       determinant > T(kMinimumDeterminant) * dxx * dyy;
  if (!maximum) return false;
  *step_x = clamp_step((dxy * dy - dyy * dx) / determinant);
  *step_y = clamp_step((dxy * dx - dxx * dy) / determinant);
  return true;
}

}  // namespace fasthg
