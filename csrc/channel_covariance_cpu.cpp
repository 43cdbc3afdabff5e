// Mean and covariance of the channels on the CPU, threads over parts of the rows.
//
//   mean = sum x / n,  covariance = (x - o)^T (x - o) / n - (mean - o)(mean - o)^T
// with o the first row of x: where means are large against the standard deviations, the plain
// products would cancel.
//
// Memory traffic: x is read once; the result is channels (channels + 1) values. 128 rows at a time
// are packed into panels of 16 neighbouring channels (float; one cache line a row), converted to
// the arithmetic type and shifted by o. A panel is 8 KiB, so all panels of 128 channels are 64 KiB
// and stay in the caches while they are multiplied with each other. A tile of 8 x 16 products
// accumulates in vector registers over the 128 rows.
//
// The products are symmetric: a panel is multiplied with itself and the panels before it, which is
// half of the work. Every part has sums of its own (channels (channels + 1) values), added in order
// and in double: the result has the same bits with any number of threads.
//
// Alternative: a BLAS product of the centred rows needs a centred copy of x, written and read.
#include <algorithm>
#include <vector>

#include "bfloat16.h"
#include "channel_covariance_math.h"
#include "ops.h"
#include "parallel.h"

namespace fasthg {
namespace {

constexpr int64_t kPackedRows = 128;
constexpr int64_t kDown = 8;  // a tile of 8 x kAcross products stays in vector registers

template <typename T>
using Real = typename Accumulate<T>::type;

// Channels of a panel: one cache line.
template <typename Real>
constexpr int64_t kAcross = 64 / sizeof(Real);

template <typename Real>
struct alignas(64) Panel {
  Real values[kPackedRows * kAcross<Real>];
};

template <typename T>
struct RowPart {
  const T* x;             // (rows, channels), of which [begin, end)
  const Real<T>* origin;  // (channels,), taken off every row
  Panel<Real<T>>* panels;
  Real<T>* products;  // (channels, channels), of which column >= row; zeros before
  Real<T>* sums;      // (channels,); zeros before
  int64_t begin, end, channels;
};

// Packs rows [begin, end) of `width` channels; the panel's other channels become zeros.
template <typename T>
FASTHG_HD void pack(const RowPart<T>& part, int64_t begin, int64_t end, int64_t first,
                    int64_t width, Real<T>* panel) {
  constexpr int64_t across = kAcross<Real<T>>;
  Real<T> origin[across] = {}, sums[across] = {};
  std::copy(part.origin + first, part.origin + first + width, origin);
  if (width == across) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = part.x + row * part.channels + first;
      Real<T>* to = panel + (row - begin) * across;
#pragma omp simd
      for (int64_t c = 0; c < across; ++c) {
        to[c] = widen(from[c]) - origin[c];
        sums[c] += to[c];
      }
    }
  } else {
    std::fill_n(panel, (end - begin) * across, Real<T>(0));
    for (int64_t row = begin; row < end; ++row) {
      const T* from = part.x + row * part.channels + first;
      Real<T>* to = panel + (row - begin) * across;
      for (int64_t c = 0; c < width; ++c) {
        to[c] = widen(from[c]) - origin[c];
        sums[c] += to[c];
      }
    }
  }
  for (int64_t c = 0; c < width; ++c) part.sums[first + c] += sums[c];
}

// Products of kDown channels that begin at `left`, in a panel, with all channels of another one.
template <typename Real>
FASTHG_HD void tile_products(const Real* left, const Real* right, int64_t rows, Real* out) {
  constexpr int64_t across = kAcross<Real>;
  Real sums[kDown][across] = {};
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < kDown; ++i)
#pragma omp simd
      for (int64_t j = 0; j < across; ++j)
        sums[i][j] += left[row * across + i] * right[row * across + j];
  for (int64_t i = 0; i < kDown; ++i)
    for (int64_t j = 0; j < across; ++j) out[i * across + j] = sums[i][j];
}

template <typename T>
FASTHG_HD void add(const RowPart<T>& part) {
  constexpr int64_t across = kAcross<Real<T>>;
  const int64_t channels = part.channels;
  for (int64_t begin = part.begin; begin < part.end; begin += kPackedRows) {
    const int64_t end = std::min(begin + kPackedRows, part.end);
    for (int64_t first = 0; first < channels; first += across) {
      Real<T>* panel = part.panels[first / across].values;
      pack(part, begin, end, first, std::min(across, channels - first), panel);
      const int64_t width = std::min(across, channels - first);
      for (int64_t top = 0; top < first + width; top += kDown) {
        Real<T> tile[kDown * across];
        const Real<T>* left = part.panels[top / across].values + top % across;
        tile_products(left, panel, end - begin, tile);
        for (int64_t i = 0; i < std::min(kDown, channels - top); ++i) {
          Real<T>* to = part.products + (top + i) * channels + first;
          for (int64_t j = 0; j < width; ++j) to[j] += tile[i * across + j];
        }
      }
    }
  }
}

// target_clones takes plain functions, no templates, so each type has its own.
FASTHG_VECTOR_CLONES void add_part(const RowPart<float>& part) {
  add(part);
}
FASTHG_VECTOR_CLONES void add_part(const RowPart<double>& part) {
  add(part);
}
FASTHG_VECTOR_CLONES void add_part(const RowPart<BFloat16>& part) {
  add(part);
}

template <typename T>
const char* run(const void* x, int64_t rows, int64_t channels, int64_t parts, void* workspace,
                void* mean, void* covariance, int threads) {
  const T* in = static_cast<const T*>(x);
  auto* products = static_cast<Real<T>*>(workspace);  // of each part, then its sums
  auto* mean_out = static_cast<Real<T>*>(mean);
  auto* out = static_cast<Real<T>*>(covariance);
  const int64_t part_size = (channels + 1) * channels, square = channels * channels;
  // Channels are measured from the first row, so that large means cancel no digits.
  std::vector<Real<T>> origin(channels);
  for (int64_t c = 0; c < channels; ++c) origin[c] = widen(in[c]);
  const int64_t panels = (channels + kAcross<Real<T>> - 1) / kAcross<Real<T>>;
  const int64_t work = std::max<int64_t>(1, rows / parts) * square / 16;
  parallel_for(parts, worker_count(parts, work, threads), [&](int, int64_t begin, int64_t end) {
    std::vector<Panel<Real<T>>> packed(panels);
    for (int64_t part = begin; part < end; ++part) {
      Real<T>* part_products = products + part * part_size;
      std::fill_n(part_products, part_size, Real<T>(0));
      add_part(RowPart<T>{in, origin.data(), packed.data(), part_products, part_products + square,
                          rows * part / parts, rows * (part + 1) / parts, channels});
    }
  });
  std::vector<double> centre(channels);  // the mean, measured from the origin
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t part = 0; part < parts; ++part)
      centre[c] += products[part * part_size + square + c];
    centre[c] /= static_cast<double>(rows);
    mean_out[c] = static_cast<Real<T>>(origin[c] + centre[c]);
  }
  const int workers = worker_count(channels, parts * channels / 2, threads);
  parallel_for(channels, workers, [&](int, int64_t begin, int64_t end) {
    std::vector<double> sum(channels);
    for (int64_t i = begin; i < end; ++i) {
      std::fill(sum.begin() + i, sum.end(), 0.0);
      for (int64_t part = 0; part < parts; ++part) {
        const Real<T>* row = products + part * part_size + i * channels;
        for (int64_t j = i; j < channels; ++j) sum[j] += row[j];
      }
      out[i * channels + i] = static_cast<Real<T>>(variance_of(sum[i], centre[i], rows));
      for (int64_t j = i + 1; j < channels; ++j)
        out[i * channels + j] = out[j * channels + i] =
            static_cast<Real<T>>(covariance_of(sum[j], centre[i], centre[j], rows));
    }
  });
  return nullptr;
}

}  // namespace
}  // namespace fasthg

const char* fasthg_channel_covariance_cpu(int dtype, const void* x, int64_t rows, int64_t channels,
                                          int64_t parts, void* workspace, void* mean,
                                          void* covariance, int threads) {
  using namespace fasthg;
  if (dtype == kFloat32)
    return run<float>(x, rows, channels, parts, workspace, mean, covariance, threads);
  if (dtype == kFloat64)
    return run<double>(x, rows, channels, parts, workspace, mean, covariance, threads);
  if (dtype == kBFloat16)
    return run<BFloat16>(x, rows, channels, parts, workspace, mean, covariance, threads);
  return "channel_covariance on the CPU takes float32, float64 and bfloat16";
}
