// Loss and gradient in one pass over the predictions: a row of targets is made in the first-level
// cache, compared, and forgotten.
#include "gaussian_rows.h"
#include "heatmap_mse_math.h"
#include "ops.h"
#include "parallel.h"

namespace fasthg {
namespace {

// A row is summed in T (a few hundred terms in vector lanes), rows in double.
template <typename T>
FASTHG_HD double compare(GaussianRows<T>& rows, const T* prediction, T* gradient) {
  const int64_t length = rows.length();
  T* target = rows.scratch_row();
  double total = 0;
  for (int64_t row = 0; row < rows.rows(); ++row, prediction += length) {
    rows.write(row, target);
    T sum = 0;
    if (gradient) {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < length; ++i) {
        const SquaredError<T> error = squared_error(prediction[i], target[i]);
        gradient[i] = error.gradient;
        sum += error.twice_loss;
      }
      gradient += length;
    } else {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < length; ++i)
        sum += squared_error(prediction[i], target[i]).twice_loss;
    }
    total += sum;
  }
  return total / 2;
}
FASTHG_VECTOR_CLONES double compare_image(GaussianRows<float>& rows, const float* prediction,
                                          float* gradient) {
  return compare(rows, prediction, gradient);
}
FASTHG_VECTOR_CLONES double compare_image(GaussianRows<double>& rows, const double* prediction,
                                          double* gradient) {
  return compare(rows, prediction, gradient);
}

template <typename T>
void heatmap_mse(const Targets& targets, int stacks, const T* predictions, int64_t stack_stride,
                 int64_t batch_stride, bool channels_last, T* gradient, T* loss, int threads) {
  const GaussianRows<T> empty(targets, channels_last);
  const int64_t size = empty.image_size();
  const int64_t items = static_cast<int64_t>(targets.batch) * stacks;
  const int workers = worker_count(items, size, threads);
  std::vector<GaussianRows<T>> tables(workers, empty);
  // All stacks of an image follow each other, so a worker fills an image's tables once.
  parallel_for(items, workers, [&](int worker, int64_t begin, int64_t end) {
    int64_t loaded = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / stacks, stack = item % stacks;
      if (image != loaded) tables[worker].load(loaded = image);
      const int64_t out = stack * targets.batch + image;
      const T* prediction = predictions + stack * stack_stride + image * batch_stride;
      loss[out] = static_cast<T>(
          compare_image(tables[worker], prediction, gradient ? gradient + out * size : nullptr));
    }
  });
}

}  // namespace
}  // namespace fasthg

const char* fasthg_heatmap_mse_cpu(int dtype, const fasthg::Targets* targets, int stacks,
                                   const void* predictions, int64_t stack_stride,
                                   int64_t batch_stride, bool channels_last, void* gradient,
                                   void* loss, int threads) {
  using namespace fasthg;
  if (dtype == kFloat32)
    heatmap_mse(*targets, stacks, static_cast<const float*>(predictions), stack_stride,
                batch_stride, channels_last, static_cast<float*>(gradient),
                static_cast<float*>(loss), threads);
  else if (dtype == kFloat64)
    heatmap_mse(*targets, stacks, static_cast<const double*>(predictions), stack_stride,
                batch_stride, channels_last, static_cast<double*>(gradient),
                static_cast<double*>(loss), threads);
  else
    return "heatmap_mse on the CPU takes float32 and float64";
  return nullptr;
}
