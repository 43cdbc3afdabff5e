// The Gaussian of a keypoint, for the operators that draw target maps and those that compare with
// them.
//
//   exp(-((i - u)^2 + (j - v)^2) / (2 sigma^2))
//     = exp(-(i - u)^2 / (2 sigma^2)) exp(-(j - v)^2 / (2 sigma^2))
// is a factor of the column i times a factor of the row j: a map of H x W cells needs H + W
// exponentials in place of H * W, and one multiplication a cell. There is no cut-off radius: every
// cell has its exact value.
#pragma once

#include <cmath>

#include "portable.h"

namespace fasthg {

template <typename T>
struct Gaussian {
  T x, y, sigma;
  bool drawn;  // false: the target map is empty
};

// Reads one part's Gaussian. The comparisons are false for NaN; x - x is 0 for finite numbers only.
template <typename T>
FASTHG_HD Gaussian<T> gaussian_of(const Targets& targets, int image, int part) {
  const int64_t index = static_cast<int64_t>(image) * targets.parts + part;
  const T* keypoint = static_cast<const T*>(targets.keypoints) + 2 * index;
  Gaussian<T> g;
  g.x = keypoint[0];
  g.y = keypoint[1];
  g.sigma = static_cast<const T*>(targets.sigmas)[image * targets.sigma_stride + part];
  g.drawn = g.x - g.x == 0 && g.y - g.y == 0 && g.sigma > 0 &&
            (!targets.visibility || targets.visibility[index]);
  if (!targets.subpixel) {
    g.x = std::rint(g.x);
    g.y = std::rint(g.y);
  }
  return g;
}

// One factor. Dividing before squaring avoids inf / inf for huge coordinates.
template <typename T>
FASTHG_HD T gaussian_factor(int cell, T centre, T sigma) {
  const T z = (static_cast<T>(cell) - centre) / sigma;
  return std::exp(T(-0.5) * z * z);
}

// The tables of one image: `across` has a factor for each part and column, `down` for each part
// and row. With parts last the entries of a column's (row's) parts are neighbours.
FASTHG_HD int table_size(const Targets& targets) {
  return targets.parts * (targets.width + targets.height);
}
FASTHG_HD int table_index(int part, int cell, int parts, int cells, bool channels_last) {
  return channels_last ? cell * parts + part : part * cells + cell;
}

}  // namespace fasthg
