// Target maps on the GPU, for the kernels that draw them and those that compare with them: a block
// holds the tables of one image in shared memory, and a thread walks over its cells in memory
// order.
#pragma once

#include "cuda_utils.cuh"
#include "gaussian_heatmaps_math.h"

namespace fasthg {

// Fill `tables` (table_size values of shared memory: across, then down) for one image. The caller
// needs a barrier before it reads them.
template <typename T>
__device__ void fill_tables(const Targets& targets, int image, bool channels_last, T* tables) {
  const int across = targets.parts * targets.width;
  for (int i = threadIdx.x; i < table_size(targets); i += blockDim.x) {
    const bool is_across = i < across;
    const int cells = is_across ? targets.width : targets.height;
    const int k = is_across ? i : i - across;
    const int part = channels_last ? k % targets.parts : k / cells;
    const int cell = channels_last ? k / targets.parts : k % cells;
    const Gaussian<T> g = gaussian_of<T>(targets, image, part);
    tables[i] = g.drawn ? gaussian_factor(cell, is_across ? g.x : g.y, g.sigma) : T(0);
  }
}

// Target values in memory order, starting at any element of an image. The divisions are made once
// at the start; a step costs one or two comparisons.
template <typename T, bool channels_last>
class TargetWalk {
 public:
  __device__ TargetWalk(const Targets& targets, const T* tables, int element)
      : across_(tables),
        down_(tables + targets.parts * targets.width),
        inner_(channels_last ? targets.parts : targets.width),
        middle_(channels_last ? targets.width : targets.height) {
    i_ = element % inner_;
    j_ = element / inner_ % middle_;
    k_ = element / inner_ / middle_;
  }

  __device__ T next() {
    // parts first: (i, j, k) = (column, row, part); parts last: (part, column, row).
    const T target = channels_last ? down_[k_ * inner_ + i_] * across_[j_ * inner_ + i_]
                                   : down_[k_ * middle_ + j_] * across_[k_ * inner_ + i_];
    if (++i_ == inner_) {
      i_ = 0;
      if (++j_ == middle_) j_ = 0, ++k_;
    }
    return target;
  }

 private:
  const T* across_;
  const T* down_;
  int inner_, middle_, i_, j_, k_;
};

}  // namespace fasthg
