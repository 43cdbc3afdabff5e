// Heatmap loss and gradient on the CPU, threads over images.
//
//   loss[stack, image] = sum (prediction - target)^2 / 2
//   grad_prediction = (prediction - target) grad_loss[stack, image]
// with the Gaussian targets of gaussian_heatmaps_math.h.
//
// Fused: target values are made in blocks of 16384, which stay in the second-level cache, and
// compared with the predictions of every stack; no target map is stored.
//
// Memory traffic, in predictions: forward 1 (read), backward 2 (read again, gradient written). With
// stored targets a single stack would move 1 more to draw and 1 more to read in each direction. A
// block's targets serve all stacks: their cost is shared by as many stacks as there are.
//
// Sums run over 2048 values in the maps' type, in four partial sums, and over those in double, in a
// fixed order: the loss has the same bits with any number of threads.
#include "gaussian_rows.h"
#include "heatmap_mse_math.h"
#include "ops.h"
#include "parallel.h"

namespace fasthg {
namespace {

// Values of targets made at a time, at least a row: enough for the processor to prefetch each
// stack, few enough to stay in a second-level cache.
constexpr int64_t kBlock = 16384;
constexpr int64_t kSum = 2048;  // values added up in T

template <typename T>
int64_t block_rows(const GaussianRows<T>& rows) {
  return std::max<int64_t>(1, kBlock / std::max<int64_t>(1, rows.length()));
}

// Writes up to `height` rows of targets from `row` on; returns how many values they are.
template <typename T>
FASTHG_HD int64_t write_block(GaussianRows<T>& rows, int64_t row, int64_t height, T* target) {
  const int64_t end = std::min(row + height, rows.rows()), length = rows.length();
  for (int64_t r = row; r < end; ++r) rows.write(r, target + (r - row) * length);
  return (end - row) * length;
}

// Squared errors in four partial sums, whose additions do not depend on each other.
template <typename T>
FASTHG_HD T short_loss(const T* prediction, const T* target, int64_t length) {
  const int64_t quarter = length / 4;
  const T *p = prediction, *t = target;
  T sums[4] = {}, rest = 0, &a = sums[0], &b = sums[1], &c = sums[2], &d = sums[3];
#pragma omp simd reduction(+ : a, b, c, d)
  for (int64_t i = 0; i < quarter; ++i) {
    a += squared_error(p[i], t[i]);
    b += squared_error(p[quarter + i], t[quarter + i]);
    c += squared_error(p[2 * quarter + i], t[2 * quarter + i]);
    d += squared_error(p[3 * quarter + i], t[3 * quarter + i]);
  }
  for (int64_t i = 4 * quarter; i < length; ++i) rest += squared_error(p[i], t[i]);
  return ((a + b) + (c + d)) + rest;
}

template <typename T>
FASTHG_HD double block_loss(const T* prediction, const T* target, int64_t length) {
  double sum = 0;
  for (int64_t i = 0; i < length; i += kSum)
    sum += short_loss(prediction + i, target + i, std::min(kSum, length - i));
  return sum;
}

template <typename T>
FASTHG_HD void block_gradient(const T* __restrict__ prediction, const T* __restrict__ target,
                              int64_t length, T grad_loss, T* __restrict__ gradient) {
  for (int64_t i = 0; i < length; ++i)
    gradient[i] = squared_error_backward(prediction[i], target[i], grad_loss);
}

struct PredictionMaps {
  const void* data;
  int stacks;
  int64_t stack_stride, batch_stride;
  bool channels_last;
};

// Some stacks of one image, and where their losses and gradients go.
template <typename T>
struct ImageStacks {
  const T* predictions;  // those of the first stack
  int64_t stack_stride, first, last, batch, image;
  int64_t index(int64_t stack) const { return stack * batch + image; }
};

template <typename T>
FASTHG_HD void image_losses(GaussianRows<T>& rows, const ImageStacks<T>& item, T* target,
                            double* totals, T* loss) {
  const int64_t stacks = item.last - item.first, height = block_rows(rows);
  std::fill_n(totals, stacks, 0.0);
  for (int64_t row = 0; row < rows.rows(); row += height) {
    const int64_t offset = row * rows.length(), length = write_block(rows, row, height, target);
    for (int64_t k = 0; k < stacks; ++k)
      totals[k] += block_loss(item.predictions + k * item.stack_stride + offset, target, length);
  }
  for (int64_t k = 0; k < stacks; ++k)
    loss[item.index(item.first + k)] = static_cast<T>(totals[k] / 2);
}

template <typename T>
FASTHG_HD void image_gradients(GaussianRows<T>& rows, const ImageStacks<T>& item, T* target,
                               const T* grad_loss, T* gradient) {
  const int64_t stacks = item.last - item.first, height = block_rows(rows);
  for (int64_t row = 0; row < rows.rows(); row += height) {
    const int64_t offset = row * rows.length(), length = write_block(rows, row, height, target);
    for (int64_t k = 0; k < stacks; ++k) {
      const int64_t index = item.index(item.first + k);
      block_gradient(item.predictions + k * item.stack_stride + offset, target, length,
                     grad_loss[index], gradient + index * rows.image_size() + offset);
    }
  }
}

// target_clones takes plain functions, no templates, so each type has its own.
#define FASTHG_IMAGES(T)                                                                        \
  FASTHG_VECTOR_CLONES void add_image_losses(GaussianRows<T>& rows, const ImageStacks<T>& item, \
                                             T* target, double* totals, T* loss) {              \
    image_losses(rows, item, target, totals, loss);                                             \
  }                                                                                             \
  FASTHG_VECTOR_CLONES void write_image_gradients(GaussianRows<T>& rows,                        \
                                                  const ImageStacks<T>& item, T* target,        \
                                                  const T* grad_loss, T* gradient) {            \
    image_gradients(rows, item, target, grad_loss, gradient);                                   \
  }
FASTHG_IMAGES(float)
FASTHG_IMAGES(double)
#undef FASTHG_IMAGES

template <typename T>
struct WorkerScratch {
  GaussianRows<T> rows;
  std::vector<T> target;
  std::vector<double> totals;
};

// Calls body(scratch, item) for all stacks of all images.
template <typename T, typename Body>
void each_image(const Targets& targets, const PredictionMaps& predictions, int threads,
                const Body& body) {
  const GaussianRows<T> empty(targets, predictions.channels_last);
  const int64_t batch = targets.batch, stacks = predictions.stacks;
  const int workers = worker_count(batch * stacks, empty.image_size(), threads);
  // All stacks of an image together, so that its targets are made once. With fewer images than
  // workers the stacks are divided, which changes no sum.
  const int64_t shares = std::min(stacks, (workers + batch - 1) / batch);
  const std::vector<T> target(block_rows(empty) * empty.length());
  std::vector<WorkerScratch<T>> scratch(workers, {empty, target, std::vector<double>(stacks)});
  parallel_for(batch * shares, workers, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / shares, share = i % shares;
      const int64_t first = stacks * share / shares, last = stacks * (share + 1) / shares;
      scratch[worker].rows.load(image);
      body(scratch[worker],
           ImageStacks<T>{static_cast<const T*>(predictions.data) +
                              first * predictions.stack_stride + image * predictions.batch_stride,
                          predictions.stack_stride, first, last, batch, image});
    }
  });
}

template <typename T>
void losses(const Targets& targets, const PredictionMaps& predictions, T* loss, int threads) {
  each_image<T>(targets, predictions, threads,
                [&](WorkerScratch<T>& s, const ImageStacks<T>& item) {
                  add_image_losses(s.rows, item, s.target.data(), s.totals.data(), loss);
                });
}

template <typename T>
void gradients(const Targets& targets, const PredictionMaps& predictions, const T* grad_loss,
               T* gradient, int threads) {
  each_image<T>(targets, predictions, threads,
                [&](WorkerScratch<T>& s, const ImageStacks<T>& item) {
                  write_image_gradients(s.rows, item, s.target.data(), grad_loss, gradient);
                });
}

constexpr const char* kWrongDtype = "heatmap_mse on the CPU takes float32 and float64";

}  // namespace
}  // namespace fasthg

const char* fasthg_heatmap_mse_cpu(int dtype, const fasthg::Targets* targets, int stacks,
                                   const void* predictions, int64_t stack_stride,
                                   int64_t batch_stride, bool channels_last, void* loss,
                                   int threads) {
  using namespace fasthg;
  const PredictionMaps p{predictions, stacks, stack_stride, batch_stride, channels_last};
  if (dtype == kFloat32)
    losses(*targets, p, static_cast<float*>(loss), threads);
  else if (dtype == kFloat64)
    losses(*targets, p, static_cast<double*>(loss), threads);
  else
    return kWrongDtype;
  return nullptr;
}

const char* fasthg_heatmap_mse_backward_cpu(int dtype, const fasthg::Targets* targets, int stacks,
                                            const void* predictions, int64_t stack_stride,
                                            int64_t batch_stride, bool channels_last,
                                            const void* grad_loss, void* gradient, int threads) {
  using namespace fasthg;
  const PredictionMaps p{predictions, stacks, stack_stride, batch_stride, channels_last};
  if (dtype == kFloat32)
    gradients(*targets, p, static_cast<const float*>(grad_loss), static_cast<float*>(gradient),
              threads);
  else if (dtype == kFloat64)
    gradients(*targets, p, static_cast<const double*>(grad_loss), static_cast<double*>(gradient),
              threads);
  else
    return kWrongDtype;
  return nullptr;
}
