// Max pooling 2x2 and its gradient on the CPU, threads over pairs of rows. Formula:
// max_pool2x_math.h.
//
// The forward writes y and the position of the largest value, one byte. The backward gathers: every
// pair of rows of grad_x is written from the one row of grad_y that it was reduced to, so grad_x is
// written once, needs no zeros first, and threads never write to the same place.
//
// Memory traffic in units of x, 4-byte values: forward 1 + 1/4 (y) + 1/16 (index) = 1.3125,
// backward the same (grad_y and index read, grad_x written). With an addend, the gradient of
// another reader of x, the backward is 2.3125; to add the two afterwards would be 3 more. Two bits
// a result would do for the index, in place of 8, and need packing across neighbouring values.
// Keeping x and y in place of the index would cost 1.25 more to read in the backward and the memory
// of x.
//
// bfloat16 is compared as 16-bit integers, so that a vector register holds twice as many values.
#include <algorithm>
#include <type_traits>

#include "bfloat16.h"
#include "max_pool2x_math.h"
#include "ops.h"
#include "parallel.h"

namespace fasthg {
namespace {

// An integer as wide as a value: a loop over values of one width needs no widening instructions.
template <size_t size>
struct Bits;
template <>
struct Bits<2> {
  using type = uint16_t;
};
template <>
struct Bits<4> {
  using type = uint32_t;
};
template <>
struct Bits<8> {
  using type = uint64_t;
};

// Values as they are compared. bfloat16 bits are mapped to int16 so that integer order equals float
// order: -0 equals +0, and every NaN becomes 0x7fff.
constexpr int16_t kNaN = 0x7fff, kInfinity = 0x7f80;

FASTHG_HD float comparable(float value) {
  return value;
}
FASTHG_HD double comparable(double value) {
  return value;
}
FASTHG_HD int16_t comparable(int16_t bits) {
  const int16_t size = bits & kNaN;
  const int16_t ordered = static_cast<int16_t>(bits < 0 ? -size : size);
  return size > kInfinity ? kNaN : ordered;
}
using fasthg::replaces;  // which the next line would hide
FASTHG_HD bool replaces(int16_t value, int16_t largest) {
  return static_cast<int>(value > largest) | static_cast<int>(value == kNaN);
}

template <typename T>
FASTHG_HD void pool_row(const T* x, int64_t width, int64_t channels, T* y, uint8_t* index) {
  using Index = typename Bits<sizeof(T)>::type;
  const int64_t below = width * channels, offsets[] = {channels, below, below + channels};
  for (int64_t column = 0; column < width / 2; ++column) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      T result = x[c];
      auto largest = comparable(result);
      Index which = 0;
      for (int position = 1; position < 4; ++position) {
        const T here = x[offsets[position - 1] + c];
        const auto value = comparable(here);
        const bool better = replaces(value, largest);
        largest = better ? value : largest;
        result = better ? here : result;
        which = better ? Index(position) : which;
      }
      y[c] = result;
      index[c] = static_cast<uint8_t>(which);
    }
    x += 2 * channels;
    y += channels;
    index += channels;
  }
}

// Writes the two rows of grad_x that belong to a row of grad_y; a last odd column gets 0.
template <typename T>
FASTHG_HD void unpool_row(const T* grad_y, const uint8_t* index, int64_t width, int64_t channels,
                          T* grad_x) {
  const int64_t below = width * channels;
  for (int64_t column = 0; column < width / 2; ++column) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const T value = grad_y[c];
      const T which = index[c];
      grad_x[c] = max_pool_backward<T, T>(value, which, 0);
      grad_x[channels + c] = max_pool_backward<T, T>(value, which, 1);
      grad_x[below + c] = max_pool_backward<T, T>(value, which, 2);
      grad_x[below + channels + c] = max_pool_backward<T, T>(value, which, 3);
    }
    grad_x += 2 * channels;
    grad_y += channels;
    index += channels;
  }
  if (width % 2)
    for (int64_t c = 0; c < channels; ++c) grad_x[c] = grad_x[below + c] = T{};
}

// `unpool_row` plus an addend, which has the two rows' values as grad_x has.
template <typename T>
FASTHG_HD void unpool_add_row(const T* grad_y, const uint8_t* index, const T* addend, int64_t width,
                              int64_t channels, T* grad_x) {
  using Real = decltype(widen(T{}));
  const int64_t below = width * channels;
  const int64_t offsets[] = {0, channels, below, below + channels};
  for (int64_t column = 0; column < width / 2; ++column) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const Real value = widen(grad_y[c]);
      const int which = index[c];
      for (int position = 0; position < 4; ++position)
        store(widen(addend[offsets[position] + c]) + max_pool_backward(value, which, position),
              grad_x + offsets[position] + c);
    }
    addend += 2 * channels;
    grad_x += 2 * channels;
    grad_y += channels;
    index += channels;
  }
  if (width % 2)
    for (int64_t c = 0; c < channels; ++c) {
      store(widen(addend[c]) + Real(0), grad_x + c);
      store(widen(addend[below + c]) + Real(0), grad_x + below + c);
    }
}

// target_clones takes plain functions, no templates, so each type has its own. Gradients are copied
// without arithmetic, so unsigned integers stand for all types of one size.
#define FASTHG_FORWARD(T)                                                              \
  FASTHG_VECTOR_CLONES void forward(const T* x, int64_t width, int64_t channels, T* y, \
                                    uint8_t* index) {                                  \
    pool_row(x, width, channels, y, index);                                            \
  }
FASTHG_FORWARD(float)
FASTHG_FORWARD(double)
FASTHG_FORWARD(int16_t)
#undef FASTHG_FORWARD
#define FASTHG_BACKWARD(T)                                                                 \
  FASTHG_VECTOR_CLONES void backward(const T* grad_y, const uint8_t* index, int64_t width, \
                                     int64_t channels, T* grad_x) {                        \
    unpool_row(grad_y, index, width, channels, grad_x);                                    \
  }
FASTHG_BACKWARD(uint16_t)
FASTHG_BACKWARD(uint32_t)
FASTHG_BACKWARD(uint64_t)
#undef FASTHG_BACKWARD
#define FASTHG_BACKWARD_ADD(T)                                                                   \
  FASTHG_VECTOR_CLONES void backward_add(const T* grad_y, const uint8_t* index, const T* addend, \
                                         int64_t width, int64_t channels, T* grad_x) {           \
    unpool_add_row(grad_y, index, addend, width, channels, grad_x);                              \
  }
FASTHG_BACKWARD_ADD(float)
FASTHG_BACKWARD_ADD(double)
FASTHG_BACKWARD_ADD(BFloat16)
#undef FASTHG_BACKWARD_ADD

constexpr const char* kWrongDtype = "max_pool2x on the CPU takes float32, float64 and bfloat16";

// Where a row of the pooled map and its pair of rows in the full map begin, in values.
struct RowOffsets {
  int64_t pooled, full;
};

// Calls body(offsets) for each row of the pooled map.
template <typename Body>
void each_row(const int64_t shape[4], int threads, const Body& body) {
  const int64_t height = shape[1], width = shape[2], channels = shape[3];
  const int64_t half = height / 2, rows = shape[0] * half;
  const int workers = worker_count(rows, 2 * width * channels, threads);
  parallel_for(rows, workers, [&](int, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      body(RowOffsets{row * (width / 2) * channels,
                      (row / half * height + row % half * 2) * width * channels});
  });
}

}  // namespace
}  // namespace fasthg

const char* fasthg_max_pool2x_cpu(int dtype, const void* x, const int64_t shape[4], void* y,
                                  uint8_t* index, int threads) {
  using namespace fasthg;
  return dispatch(dtype, kWrongDtype, [&](auto zero) {
    using T = std::conditional_t<sizeof zero == 2, int16_t, decltype(zero)>;
    each_row(shape, threads, [&](RowOffsets at) {
      forward(static_cast<const T*>(x) + at.full, shape[2], shape[3],
              static_cast<T*>(y) + at.pooled, index + at.pooled);
    });
  });
}

const char* fasthg_max_pool2x_backward_cpu(int dtype, const void* grad_y, const uint8_t* index,
                                           const void* addend, const int64_t shape[4], void* grad_x,
                                           int threads) {
  using namespace fasthg;
  const int64_t row = shape[2] * shape[3], image = shape[1] * row;
  if (addend)
    return dispatch(dtype, kWrongDtype, [&](auto zero) {
      using T = decltype(zero);
      const auto* added = static_cast<const T*>(addend);
      auto* out = static_cast<T*>(grad_x);
      each_row(shape, threads, [&](RowOffsets at) {
        backward_add(static_cast<const T*>(grad_y) + at.pooled, index + at.pooled, added + at.full,
                     shape[2], shape[3], out + at.full);
      });
      // A last odd row: + 0 as everywhere else, which makes 0 of -0.
      if (shape[1] % 2)
        for (int64_t i = 1; i <= shape[0]; ++i)
          for (int64_t at = i * image - row; at < i * image; ++at)
            store(widen(added[at]) + decltype(widen(zero))(0), out + at);
    });
  return dispatch(dtype, kWrongDtype, [&](auto zero) {
    using T = typename Bits<sizeof zero>::type;
    auto* out = static_cast<T*>(grad_x);
    each_row(shape, threads, [&](RowOffsets at) {
      backward(static_cast<const T*>(grad_y) + at.pooled, index + at.pooled, shape[2], shape[3],
               out + at.full);
    });
    if (shape[1] % 2)
      for (int64_t i = 1; i <= shape[0]; ++i) std::fill_n(out + i * image - row, row, T{});
  });
}
