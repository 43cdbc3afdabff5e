// Target maps on the CPU, one row of memory at a time, from the tables of gaussian_heatmaps_math.h.
//
// A row is the stretch of memory that shares one set of `down` factors: a row of one part's map
// where parts come first, a row of all parts' maps where parts come last. In both layouts row r of
// an image starts at r * length, so callers need not know the layout.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "gaussian_heatmaps_math.h"

namespace fasthg {

template <typename T>
class GaussianRows {
 public:
  GaussianRows(const Targets& targets, bool channels_last)
      : targets_(targets),
        channels_last_(channels_last),
        across_(static_cast<size_t>(targets.parts) * targets.width),
        down_(static_cast<size_t>(targets.parts) * targets.height),
        repeated_(channels_last ? across_.size() : 0) {}

  int64_t rows() const { return channels_last_ ? targets_.height : down_.size(); }
  int64_t length() const { return channels_last_ ? across_.size() : targets_.width; }
  int64_t image_size() const { return rows() * length(); }

  // Fill the tables for one image of the batch.
  void load(int image) {
    const int parts = targets_.parts;
    for (int part = 0; part < parts; ++part) {
      const Gaussian<T> g = gaussian_of<T>(targets_, image, part);
      fill(g.drawn, g.x, g.sigma, part, targets_.width, across_.data());
      fill(g.drawn, g.y, g.sigma, part, targets_.height, down_.data());
    }
  }

  // Write the target values of one row of the loaded image.
  FASTHG_HD void write(int64_t row, T* out) {
    if (!channels_last_) {
      const T factor = down_[row];
      const T* across = across_.data() + row / targets_.height * targets_.width;
      for (int x = 0; x < targets_.width; ++x) out[x] = factor * across[x];
      return;
    }
    // Parts last: the factors `down` repeat along the row with a period of `parts`. They are copied
    // to a full row by doubling, so that the product is a loop over two arrays, which vectorises
    // for any number of parts.
    const size_t parts = targets_.parts, length = repeated_.size();
    T* repeated = repeated_.data();
    std::memcpy(repeated, down_.data() + row * parts, parts * sizeof(T));
    for (size_t filled = parts; filled < length; filled *= 2)
      std::memcpy(repeated + filled, repeated, std::min(filled, length - filled) * sizeof(T));
    const T* across = across_.data();
    for (size_t i = 0; i < length; ++i) out[i] = repeated[i] * across[i];
  }

 private:
  void fill(bool drawn, T centre, T sigma, int part, int cells, T* table) const {
    for (int cell = 0; cell < cells; ++cell)
      table[table_index(part, cell, targets_.parts, cells, channels_last_)] =
          drawn ? gaussian_factor(cell, centre, sigma) : T(0);
  }

  Targets targets_;
  bool channels_last_;
  std::vector<T> across_, down_, repeated_;
};

}  // namespace fasthg
