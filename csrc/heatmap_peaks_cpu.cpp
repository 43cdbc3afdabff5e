// Peak of each map on the CPU, threads over maps. Formulas of the refinements:
// heatmap_peaks_math.h.
//
//   xy = argmax + step (argmax, quarter or dark), or the centre of the largest plateau's box
//
// One pass reads each map and finds its largest cell; the refinement then reads cells next to it,
// which lie in the cache: 4 for quarter, at most 121 for dark (13 points, each a blur of 7 x 7
// taps). Blurring the whole map first, as the paper does, would write and read maps for 13 values.
// plateau floods the cells equal to the maximum, each visited once. Memory traffic: one read.
#include <vector>

#include "heatmap_peaks_math.h"
#include "ops.h"
#include "parallel.h"

namespace fasthg {
namespace {

template <typename T>
struct HostMap {
  const T* data;
  int64_t row_stride, column_stride;
  int height, width;
  T at(int y, int x) const { return data[y * row_stride + x * column_stride]; }
};

template <typename T>
Peak<T> largest_cell(const HostMap<T>& map) {
  Peak<T> peak{T(NAN), -1};
  for (int y = 0; y < map.height; ++y)
    for (int x = 0; x < map.width; ++x) {
      const T value = map.at(y, x);
      // The second test takes the first number seen, even -inf, and never NaN.
      if (value > peak.value || (peak.cell < 0 && value == value))
        peak = {value, y * map.width + x};
    }
  return peak;
}

// Flood fill over the cells equal to the maximum; cells are visited once.
template <typename T>
void plateau_centre(const HostMap<T>& map, Peak<T> peak, std::vector<uint8_t>& seen,
                    std::vector<int>& pending, T* xy) {
  seen.assign(seen.size(), 0);
  pending.assign(1, peak.cell);
  seen[peak.cell] = 1;
  int left = map.width, right = -1, top = map.height, bottom = -1;
  while (!pending.empty()) {
    const int x = pending.back() % map.width, y = pending.back() / map.width;
    pending.pop_back();
    left = std::min(left, x), right = std::max(right, x);
    top = std::min(top, y), bottom = std::max(bottom, y);
    const int neighbours[4][2] = {{x - 1, y}, {x + 1, y}, {x, y - 1}, {x, y + 1}};
    for (const auto& n : neighbours) {
      if (n[0] < 0 || n[0] >= map.width || n[1] < 0 || n[1] >= map.height) continue;
      const int cell = n[1] * map.width + n[0];
      if (seen[cell] || map.at(n[1], n[0]) != peak.value) continue;
      seen[cell] = 1;
      pending.push_back(cell);
    }
  }
  xy[0] = T(left + right) / 2;
  xy[1] = T(top + bottom) / 2;
}

template <typename T>
void refine(const HostMap<T>& map, Peak<T> peak, int method, T* xy) {
  const int x = peak.cell % map.width, y = peak.cell / map.width;
  T dx = 0, dy = 0;
  bool refined = method == kArgmax;
  if (method == kDark && stencil_fits(x, y, map.width, map.height)) {
    T logs[kStencilPoints];
    for (int k = 0; k < kStencilPoints; ++k) {
      int sx, sy;
      stencil_point(k, &sx, &sy);
      logs[k] = log_blurred<T>(map, x + sx, y + sy);
    }
    refined = dark_offset(logs, &dx, &dy);
  }
  if (!refined) quarter_offset(map, x, y, &dx, &dy);
  xy[0] = x + dx;
  xy[1] = y + dy;
}

template <typename T>
void heatmap_peaks(const T* heatmaps, const int64_t* strides, const int64_t* shape, int method,
                   T* xy, T* score, int threads) {
  const int64_t parts = shape[1], maps = shape[0] * parts, cells = shape[2] * shape[3];
  const int workers = worker_count(maps, cells, threads);
  std::vector<std::vector<uint8_t>> seen(workers);
  std::vector<std::vector<int>> pending(workers);
  if (method == kPlateau)
    for (int worker = 0; worker < workers; ++worker) {
      seen[worker].resize(cells);
      pending[worker].reserve(cells);
    }
  parallel_for(maps, workers, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* data = heatmaps + i / parts * strides[0] + i % parts * strides[1];
      const HostMap<T> map{data, strides[2], strides[3], static_cast<int>(shape[2]),
                           static_cast<int>(shape[3])};
      const Peak<T> peak = largest_cell(map);
      score[i] = peak.value;
      if (peak.cell < 0)
        xy[2 * i] = xy[2 * i + 1] = T(NAN);
      else if (method == kPlateau)
        plateau_centre(map, peak, seen[worker], pending[worker], xy + 2 * i);
      else
        refine(map, peak, method, xy + 2 * i);
    }
  });
}

}  // namespace
}  // namespace fasthg

const char* fasthg_heatmap_peaks_cpu(int dtype, const void* heatmaps, const int64_t strides[4],
                                     const int64_t shape[4], int method, void* xy, void* score,
                                     int threads) {
  using namespace fasthg;
  if (dtype == kFloat32)
    heatmap_peaks(static_cast<const float*>(heatmaps), strides, shape, method,
                  static_cast<float*>(xy), static_cast<float*>(score), threads);
  else if (dtype == kFloat64)
    heatmap_peaks(static_cast<const double*>(heatmaps), strides, shape, method,
                  static_cast<double*>(xy), static_cast<double*>(score), threads);
  else
    return "heatmap_peaks on the CPU takes float32 and float64";
  return nullptr;
}
