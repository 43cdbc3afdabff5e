// Loss and gradient, each in one pass over the predictions: a row of targets is made in the
// first-level cache, compared, and forgotten. Making it twice costs less than storing it once.
#include "gaussian_rows.h"
#include "heatmap_mse_math.h"
#include "ops.h"
#include "parallel.h"

namespace fasthg {
namespace {

// A row is summed in T (a few hundred terms in vector lanes), rows in double.
template <typename T>
FASTHG_HD double image_loss(GaussianRows<T>& rows, const T* prediction) {
  const int64_t length = rows.length();
  T* target = rows.scratch_row();
  double total = 0;
  for (int64_t row = 0; row < rows.rows(); ++row, prediction += length) {
    rows.write(row, target);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < length; ++i) sum += squared_error(prediction[i], target[i]);
    total += sum;
  }
  return total / 2;
}

template <typename T>
FASTHG_HD void image_gradient(GaussianRows<T>& rows, const T* prediction, T of_loss, T* gradient) {
  const int64_t length = rows.length();
  T* target = rows.scratch_row();
  for (int64_t row = 0; row < rows.rows(); ++row, prediction += length, gradient += length) {
    rows.write(row, target);
    for (int64_t i = 0; i < length; ++i)
      gradient[i] = squared_error_backward(prediction[i], target[i], of_loss);
  }
}

// Clones are made of plain functions only, so each type has its own.
using Floats = GaussianRows<float>;
using Doubles = GaussianRows<double>;
FASTHG_VECTOR_CLONES double loss_of(Floats& rows, const float* prediction) {
  return image_loss(rows, prediction);
}
FASTHG_VECTOR_CLONES double loss_of(Doubles& rows, const double* prediction) {
  return image_loss(rows, prediction);
}
FASTHG_VECTOR_CLONES void gradient_of(Floats& rows, const float* prediction, float of_loss,
                                      float* gradient) {
  image_gradient(rows, prediction, of_loss, gradient);
}
FASTHG_VECTOR_CLONES void gradient_of(Doubles& rows, const double* prediction, double of_loss,
                                      double* gradient) {
  image_gradient(rows, prediction, of_loss, gradient);
}

struct Predictions {
  const void* data;
  int stacks;
  int64_t stack_stride, batch_stride;
  bool channels_last;
};

// Calls body(rows, prediction, index) for every image of every stack, index counting (stack,
// image).
template <typename T, typename Body>
void each_image(const Targets& targets, const Predictions& predictions, int threads,
                const Body& body) {
  const GaussianRows<T> empty(targets, predictions.channels_last);
  const int stacks = predictions.stacks;
  const int64_t items = static_cast<int64_t>(targets.batch) * stacks;
  const int workers = worker_count(items, empty.image_size(), threads);
  std::vector<GaussianRows<T>> tables(workers, empty);
  // All stacks of an image follow each other, so a worker fills an image's tables once.
  parallel_for(items, workers, [&](int worker, int64_t begin, int64_t end) {
    int64_t loaded = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / stacks, stack = item % stacks;
      if (image != loaded) tables[worker].load(loaded = image);
      body(tables[worker],
           static_cast<const T*>(predictions.data) + stack * predictions.stack_stride +
               image * predictions.batch_stride,
           stack * targets.batch + image);
    }
  });
}

template <typename T>
void losses(const Targets& targets, const Predictions& predictions, T* loss, int threads) {
  each_image<T>(targets, predictions, threads,
                [&](GaussianRows<T>& rows, const T* prediction, int64_t index) {
                  loss[index] = static_cast<T>(loss_of(rows, prediction));
                });
}

template <typename T>
void gradients(const Targets& targets, const Predictions& predictions, const T* of_loss,
               T* gradient, int threads) {
  each_image<T>(targets, predictions, threads,
                [&](GaussianRows<T>& rows, const T* prediction, int64_t index) {
                  gradient_of(rows, prediction, of_loss[index],
                              gradient + index * rows.image_size());
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
  const Predictions p{predictions, stacks, stack_stride, batch_stride, channels_last};
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
                                            const void* of_loss, void* gradient, int threads) {
  using namespace fasthg;
  const Predictions p{predictions, stacks, stack_stride, batch_stride, channels_last};
  if (dtype == kFloat32)
    gradients(*targets, p, static_cast<const float*>(of_loss), static_cast<float*>(gradient),
              threads);
  else if (dtype == kFloat64)
    gradients(*targets, p, static_cast<const double*>(of_loss), static_cast<double*>(gradient),
              threads);
  else
    return kWrongDtype;
  return nullptr;
}
