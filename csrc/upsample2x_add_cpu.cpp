// Upsampling by 2 plus addition and its gradient on the CPU, threads over rows of the small map.
// Formulas: upsample2x_add_math.h.
//
// Fused: the enlarged map is never stored. Memory traffic, in large maps: forward 2.25 (low, a
// quarter, and high read, y written), backward 1.25 (grad_y read, grad_low written); the gradient
// of high is grad_y itself. Upsampling first and adding then would write and read 1 map more each.
//
// A thread takes a row of the small map and the two rows it covers, so each value of low is read or
// written once.
#include "bfloat16.h"
#include "ops.h"
#include "parallel.h"
#include "upsample2x_add_math.h"

namespace fasthg {
namespace {

// One row of the small map and the two rows of the large one that it covers.
template <typename T>
FASTHG_HD void add_row(const T* low, const T* high, int64_t width, int64_t channels, T* y) {
  const int64_t below = 2 * width * channels;
  for (int64_t column = 0; column < width; ++column) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const auto value = widen(low[c]);
      store(upsample_add(widen(high[c]), value), y + c);
      store(upsample_add(widen(high[channels + c]), value), y + channels + c);
      store(upsample_add(widen(high[below + c]), value), y + below + c);
      store(upsample_add(widen(high[below + channels + c]), value), y + below + channels + c);
    }
    low += channels;
    high += 2 * channels;
    y += 2 * channels;
  }
}

template <typename T>
FASTHG_HD void sum_row(const T* grad_y, int64_t width, int64_t channels, T* grad_low) {
  const int64_t below = 2 * width * channels;
  for (int64_t column = 0; column < width; ++column) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c)
      store(upsample_backward(widen(grad_y[c]), widen(grad_y[channels + c]),
                              widen(grad_y[below + c]), widen(grad_y[below + channels + c])),
            grad_low + c);
    grad_y += 2 * channels;
    grad_low += channels;
  }
}

// target_clones takes plain functions, no templates, so each type has its own.
#define FASTHG_ROWS(T)                                                                            \
  FASTHG_VECTOR_CLONES void forward(const T* low, const T* high, int64_t width, int64_t channels, \
                                    T* y) {                                                       \
    add_row(low, high, width, channels, y);                                                       \
  }                                                                                               \
  FASTHG_VECTOR_CLONES void backward(const T* grad_y, int64_t width, int64_t channels,            \
                                     T* grad_low) {                                               \
    sum_row(grad_y, width, channels, grad_low);                                                   \
  }
FASTHG_ROWS(float)
FASTHG_ROWS(double)
FASTHG_ROWS(BFloat16)
#undef FASTHG_ROWS

constexpr const char* kWrongDtype = "upsample2x_add on the CPU takes float32, float64, bfloat16";

// Calls body(row) for the rows of the small map.
template <typename Body>
void each_row(int64_t rows, int64_t length, int threads, const Body& body) {
  parallel_for(rows, worker_count(rows, 4 * length, threads), [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

}  // namespace
}  // namespace fasthg

const char* fasthg_upsample2x_add_cpu(int dtype, const void* low, const void* high, int64_t rows,
                                      int64_t width, int64_t channels, void* y, int threads) {
  using namespace fasthg;
  return dispatch(dtype, kWrongDtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t length = width * channels;
    each_row(rows, length, threads, [&](int64_t row) {
      forward(static_cast<const T*>(low) + row * length,
              static_cast<const T*>(high) + row * 4 * length, width, channels,
              static_cast<T*>(y) + row * 4 * length);
    });
  });
}

const char* fasthg_upsample2x_add_backward_cpu(int dtype, const void* grad_y, int64_t rows,
                                               int64_t width, int64_t channels, void* grad_low,
                                               int threads) {
  using namespace fasthg;
  return dispatch(dtype, kWrongDtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t length = width * channels;
    each_row(rows, length, threads, [&](int64_t row) {
      backward(static_cast<const T*>(grad_y) + row * 4 * length, width, channels,
               static_cast<T*>(grad_low) + row * length);
    });
  });
}
