// Peak of each map on the GPU, one block a map. Formulas of the refinements: heatmap_peaks_math.h.
//
//   xy = argmax + step (argmax, quarter or dark), or the centre of the largest plateau's box
//
// A block of 128 threads reduces its map to the largest cell; ties go to the smaller cell, so the
// order of the reduction does not matter. dark then blurs the 13 cells of its stencil, one a
// thread.
//
// Memory traffic: each value is read once; the refinement's cells (4 for quarter, at most 121 for
// dark) come from the cache. Written: 3 numbers a map. Blurring the whole map first, as the paper
// does, would write and read it for 13 values.
//
// plateau grows the region of cells equal to the maximum by one ring a round, marks in shared
// memory, one byte a cell. A round reads the whole map again, so its time grows with the diameter
// of the plateau; a union-find labelling would need fewer rounds.
#include "cuda_utils.cuh"
#include "heatmap_peaks_math.h"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kThreads = 128;

struct HeatmapLayout {
  int64_t batch_stride, part_stride, row_stride, column_stride;
  int parts, height, width;
};

template <typename T, typename Real>
struct DeviceMap {
  const T* data;
  int64_t row_stride, column_stride;
  int height, width;
  __device__ Real at(int y, int x) const {
    return static_cast<Real>(data[y * row_stride + x * column_stride]);
  }
};

template <typename Real>
struct Better {
  __device__ Peak<Real> operator()(Peak<Real> a, Peak<Real> b) const { return better_peak(a, b); }
};

struct Box {
  int left, right, top, bottom;
};
struct Union {
  __device__ Box operator()(Box a, Box b) const {
    return {min(a.left, b.left), max(a.right, b.right), min(a.top, b.top), max(a.bottom, b.bottom)};
  }
};

constexpr int kCells = 32;  // cells of a thread between two barriers: the bits of `reached`

// Grows the plateau from the peak by a ring of cells a round, until a round adds none. All threads
// test their cells, up to kCells each, before any of them is marked.
template <typename Real, typename AnyMap>
__device__ void plateau_centre(const AnyMap& map, Peak<Real> peak, uint8_t* marks, Box* scratch,
                               Real* xy) {
  const int cells = map.height * map.width;
  for (int i = threadIdx.x; i < cells; i += kThreads) marks[i] = i == peak.cell;
  bool added;
  do {
    added = false;
    for (int first = 0; first < cells; first += kThreads * kCells) {
      __syncthreads();  // what was marked before is there
      uint32_t reached = 0;
      for (int k = 0; k < kCells; ++k) {
        const int i = first + k * kThreads + static_cast<int>(threadIdx.x);
        if (i >= cells || marks[i]) continue;
        const int x = i % map.width, y = i / map.width;
        if (map.at(y, x) != peak.value) continue;
        if ((x > 0 && marks[i - 1]) || (x < map.width - 1 && marks[i + 1]) ||
            (y > 0 && marks[i - map.width]) || (y < map.height - 1 && marks[i + map.width]))
          reached |= 1u << k;
      }
      __syncthreads();  // nobody reads marks any more, though an early one would do no harm
      for (int k = 0; k < kCells; ++k)
        if (reached >> k & 1) marks[first + k * kThreads + threadIdx.x] = 1;
      added |= reached != 0;
    }
  } while (__syncthreads_or(added));
  Box box{map.width, -1, map.height, -1};
  const Box nothing = box;
  for (int i = threadIdx.x; i < cells; i += kThreads)
    if (marks[i]) {
      const int x = i % map.width, y = i / map.width;
      box = Union()(box, Box{x, x, y, y});
    }
  box = block_reduce(box, nothing, scratch, Union());
  if (threadIdx.x == 0) {
    xy[0] = Real(box.left + box.right) / 2;
    xy[1] = Real(box.top + box.bottom) / 2;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    heatmap_peaks_kernel(const T* __restrict__ heatmaps, HeatmapLayout layout, int method,
                         typename Accumulate<T>::type* __restrict__ xy,
                         typename Accumulate<T>::type* __restrict__ score) {
  using Real = typename Accumulate<T>::type;
  FASTHG_SHARED(shared);
  Peak<Real>* peaks = reinterpret_cast<Peak<Real>*>(shared);
  Real* logs = reinterpret_cast<Real*>(peaks + kMaximumWarps);
  Box* boxes = reinterpret_cast<Box*>(logs + 16);  // 13 stencil points, rounded up
  uint8_t* marks = reinterpret_cast<uint8_t*>(boxes + kMaximumWarps);

  const int index = blockIdx.x;
  const T* data = heatmaps + index / layout.parts * layout.batch_stride +
                  index % layout.parts * layout.part_stride;
  const DeviceMap<T, Real> map{data, layout.row_stride, layout.column_stride, layout.height,
                               layout.width};
  xy += 2 * static_cast<int64_t>(index);

  const Peak<Real> none{Real(NAN), -1};
  Peak<Real> peak = none;
  for (int i = threadIdx.x; i < map.height * map.width; i += kThreads) {
    const Real value = map.at(i / map.width, i % map.width);
    if (value == value) peak = better_peak(peak, Peak<Real>{value, i});
  }
  peak = block_reduce(peak, none, peaks, Better<Real>());
  if (threadIdx.x == 0) peaks[0] = peak;  // warp 0 alone read it since the barrier, and is done
  __syncthreads();                        // everyone learns the peak
  peak = peaks[0];
  if (threadIdx.x == 0) score[index] = peak.value;
  if (peak.cell < 0) {
    if (threadIdx.x < 2) xy[threadIdx.x] = Real(NAN);
    return;
  }
  if (method == kPlateau) {
    plateau_centre(map, peak, marks, boxes, xy);
    return;
  }

  const int x = peak.cell % map.width, y = peak.cell / map.width;
  const bool dark = method == kDark && stencil_fits(x, y, map.width, map.height);
  if (dark && threadIdx.x < kStencilPoints) {
    int dx, dy;
    stencil_point(threadIdx.x, &dx, &dy);
    logs[threadIdx.x] = log_blurred<Real>(map, x + dx, y + dy);
  }
  __syncthreads();  // thread 0 reads what 13 threads wrote
  if (threadIdx.x != 0) return;
  Real dx = 0, dy = 0;
  const bool refined = method == kArgmax || (dark && dark_offset(logs, &dx, &dy));
  if (!refined) quarter_offset(map, x, y, &dx, &dy);
  xy[0] = x + dx;
  xy[1] = y + dy;
}

}  // namespace
}  // namespace fasthg

const char* fasthg_heatmap_peaks_cuda(int dtype, const void* heatmaps, const int64_t strides[4],
                                      const int64_t shape[4], int method, void* xy, void* score,
                                      int device, void* stream) {
  using namespace fasthg;
  const DeviceGuard guard(device);
  const HeatmapLayout layout{strides[0],
                             strides[1],
                             strides[2],
                             strides[3],
                             static_cast<int>(shape[1]),
                             static_cast<int>(shape[2]),
                             static_cast<int>(shape[3])};
  return dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    using Real = typename Accumulate<T>::type;
    const size_t marks = method == kPlateau ? static_cast<size_t>(shape[2] * shape[3]) : 0;
    const size_t shared =
        kMaximumWarps * (sizeof(Peak<Real>) + sizeof(Box)) + 16 * sizeof(Real) + marks;
    auto* kernel = heatmap_peaks_kernel<T>;
    if (const char* refusal = allow_shared(kernel, shared)) return refusal;
    FASTHG_LAUNCH(kernel, dim3(static_cast<unsigned>(shape[0] * shape[1])), dim3(kThreads), shared,
                  stream, static_cast<const T*>(heatmaps), layout, method, static_cast<Real*>(xy),
                  static_cast<Real*>(score));
    return launch_status();
  });
}
