// Batch norm, residual and ReLU on the CPU: two passes over memory each way, threads over parts of
// the rows. Formulas and derivation: bn_act_math.h.
//
//   y = relu?((x - mean) / sqrt(var + eps) * gamma + beta + residual), channels last
//
// Forward: the sums of x - origin and of its square, then y. Backward: the sums of grad_y and of
// grad_y (x - mean), then grad_x. Scale, offset, residual and ReLU are part of the second pass; the
// ReLU mask is read from y where a residual was added, and otherwise computed from x again.
//
// Memory traffic, in maps: forward 3 (x read twice, y written), 1 more with a residual, 1 less with
// frozen statistics. Backward 5 (x and grad_y read twice, grad_x written), with residual and ReLU 8
// (y read twice, grad_residual written). A map smaller than the caches is read from memory once.
//
// Vectorisation: a row is short where there are few channels, so `repeats` rows make a tile of at
// least 128 values, and the per-channel values are repeated to the length of a tile. The inner
// loops then run over a tile with unit stride and without an index modulo channels. The price is a
// few vectors of tile length to build for each call.
//
// Sums are real numbers (float32 for float32 and bfloat16) within a part and double across parts.
// The parts depend on the shape alone and are added in order: the result has the same bits with any
// number of threads. A running (Welford) update would need no origin, but has a division a row.
#include <vector>

#include "bfloat16.h"
#include "bn_act_math.h"
#include "ops.h"
#include "parallel.h"

namespace fasthg {
namespace {

constexpr int64_t kMinimumTile = 128;  // values: a few vectors, and far smaller than the caches

template <typename T>
using Real = typename Accumulate<T>::type;

// Values aligned to a cache line, so that no vector of them crosses two lines.
template <typename T>
class AlignedValues {
 public:
  explicit AlignedValues(int64_t count) : blocks_(count * sizeof(T) / sizeof(Block) + 1) {}
  T* data() { return blocks_.data()->values; }
  const T* data() const { return blocks_.data()->values; }
  T& operator[](int64_t i) { return data()[i]; }
  T operator[](int64_t i) const { return data()[i]; }

 private:
  struct alignas(64) Block {
    T values[64 / sizeof(T)];
  };
  std::vector<Block> blocks_;
};

// What a pass over the maps reads and writes. Per-channel values are repeated to a tile.
template <typename T>
struct MapPass {
  int64_t tile;
  bool relu;
  const Real<T>*mean, *scale, *beta;         // mean: the origin in the pass of the sums
  const Real<T>*x_centred_scale, *constant;  // of grad_x
  const T *x, *residual, *y, *grad_y;        // residual: forward, y: backward; or null
  T *result, *grad_residual;                 // grad_residual or null
};

// One value of grad_y after the ReLU mask: 0 where y, or the pre-activation from x, is <= 0.
template <bool relu, bool with_y, typename T>
FASTHG_HD Real<T> load_masked_grad_y(const MapPass<T>& p, int64_t offset, int64_t i) {
  const Real<T> grad_y = widen(p.grad_y[offset]);
  if (!relu) return grad_y;
  if (with_y) return relu_backward(widen(p.y[offset]), grad_y);
  return relu_backward(normalise(widen(p.x[offset]), p.mean[i], p.scale[i], p.beta[i]), grad_y);
}

template <typename T>
FASTHG_HD void add_sums_of(const MapPass<T>& p, int64_t begin, int64_t end, Real<T>* sum,
                           Real<T>* squares) {
  const Real<T>* origin = p.mean;
  const T* x = p.x;
  const int64_t tile = p.tile;
  int64_t offset = begin;
  // Four tiles at once: the sums are then loaded and stored a quarter as often.
  for (; offset + 4 * tile <= end; offset += 4 * tile) {
#pragma omp simd
    for (int64_t i = 0; i < tile; ++i) {
      const T* four = x + offset + i;
      const Real<T> a = widen(four[0]) - origin[i], b = widen(four[tile]) - origin[i];
      const Real<T> c = widen(four[2 * tile]) - origin[i], d = widen(four[3 * tile]) - origin[i];
      sum[i] += (a + b) + (c + d);
      squares[i] += (a * a + b * b) + (c * c + d * d);
    }
  }
  for (; offset < end; offset += tile) {
    const int64_t length = std::min(tile, end - offset);
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      const Real<T> value = widen(x[offset + i]) - origin[i];
      sum[i] += value;
      squares[i] += value * value;
    }
  }
}

template <bool relu, bool with_y, typename T>
FASTHG_HD void grad_sums_if(const MapPass<T>& p, int64_t begin, int64_t end, Real<T>* sum,
                            Real<T>* products) {
  const int64_t tile = p.tile;
  int64_t offset = begin;
  for (; offset + 2 * tile <= end; offset += 2 * tile) {
#pragma omp simd
    for (int64_t i = 0; i < tile; ++i) {
      const Real<T> a = load_masked_grad_y<relu, with_y>(p, offset + i, i);
      const Real<T> b = load_masked_grad_y<relu, with_y>(p, offset + tile + i, i);
      sum[i] += a + b;
      products[i] += a * (widen(p.x[offset + i]) - p.mean[i]) +
                     b * (widen(p.x[offset + tile + i]) - p.mean[i]);
    }
  }
  for (; offset < end; offset += tile) {
    const int64_t length = std::min(tile, end - offset);
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      const Real<T> value = load_masked_grad_y<relu, with_y>(p, offset + i, i);
      sum[i] += value;
      products[i] += value * (widen(p.x[offset + i]) - p.mean[i]);
    }
  }
}

template <typename T>
FASTHG_HD void add_grad_sums_of(const MapPass<T>& p, int64_t begin, int64_t end, Real<T>* sum,
                                Real<T>* products) {
  if (!p.relu)
    grad_sums_if<false, false>(p, begin, end, sum, products);
  else if (p.y)
    grad_sums_if<true, true>(p, begin, end, sum, products);
  else
    grad_sums_if<true, false>(p, begin, end, sum, products);
}

template <bool relu, bool with_residual, typename T>
FASTHG_HD void result_if(const MapPass<T>& p, int64_t begin, int64_t end) {
  for (int64_t offset = begin; offset < end; offset += p.tile) {
    const int64_t length = std::min(p.tile, end - offset);
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      Real<T> value = normalise(widen(p.x[offset + i]), p.mean[i], p.scale[i], p.beta[i]);
      if (with_residual) value += widen(p.residual[offset + i]);
      store(relu ? apply_relu(value) : value, p.result + offset + i);
    }
  }
}

template <typename T>
FASTHG_HD void write_result_of(const MapPass<T>& p, int64_t begin, int64_t end) {
  if (p.residual)
    p.relu ? result_if<true, true>(p, begin, end) : result_if<false, true>(p, begin, end);
  else
    p.relu ? result_if<true, false>(p, begin, end) : result_if<false, false>(p, begin, end);
}

template <bool relu, bool with_y, typename T>
FASTHG_HD void grad_x_if(const MapPass<T>& p, int64_t begin, int64_t end) {
  for (int64_t offset = begin; offset < end; offset += p.tile) {
    const int64_t length = std::min(p.tile, end - offset);
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      const Real<T> grad_y = load_masked_grad_y<relu, with_y>(p, offset + i, i);
      const Real<T> x_centred = widen(p.x[offset + i]) - p.mean[i];
      store(grad_y * p.scale[i] + (x_centred * p.x_centred_scale[i] + p.constant[i]),
            p.result + offset + i);
      if (with_y) store(grad_y, p.grad_residual + offset + i);
    }
  }
}

template <typename T>
FASTHG_HD void write_grad_x_of(const MapPass<T>& p, int64_t begin, int64_t end) {
  if (!p.relu)
    grad_x_if<false, false>(p, begin, end);
  else if (p.y)
    grad_x_if<true, true>(p, begin, end);
  else
    grad_x_if<true, false>(p, begin, end);
}

// target_clones takes plain functions, no templates, so each type has its own. begin, end: values.
#define FASTHG_PASSES(T)                                                                    \
  FASTHG_VECTOR_CLONES void add_sums(const MapPass<T>& p, int64_t begin, int64_t end,       \
                                     Real<T>* first, Real<T>* second) {                     \
    add_sums_of(p, begin, end, first, second);                                              \
  }                                                                                         \
  FASTHG_VECTOR_CLONES void add_grad_sums(const MapPass<T>& p, int64_t begin, int64_t end,  \
                                          Real<T>* first, Real<T>* second) {                \
    add_grad_sums_of(p, begin, end, first, second);                                         \
  }                                                                                         \
  FASTHG_VECTOR_CLONES void write_result(const MapPass<T>& p, int64_t begin, int64_t end) { \
    write_result_of(p, begin, end);                                                         \
  }                                                                                         \
  FASTHG_VECTOR_CLONES void write_grad_x(const MapPass<T>& p, int64_t begin, int64_t end) { \
    write_grad_x_of(p, begin, end);                                                         \
  }
FASTHG_PASSES(float)
FASTHG_PASSES(double)
FASTHG_PASSES(BFloat16)
#undef FASTHG_PASSES

template <typename T>
class RowParts {
 public:
  RowParts(const BatchNorm& norm, int threads)
      : norm_(norm),
        repeats_(norm.channels ? std::max<int64_t>(1, kMinimumTile / norm.channels) : 1),
        tile_(repeats_ * norm.channels),
        workers_(norm.parts
                     ? worker_count(norm.parts, norm.rows * norm.channels / norm.parts, threads)
                     : 1) {}

  int64_t tile() const { return tile_; }

  // (channels,) repeated to a tile.
  template <typename Value>
  AlignedValues<Real<T>> repeated(const Value& value_of_channel) const {
    AlignedValues<Real<T>> values(tile_);
    for (int64_t i = 0; i < tile_; ++i) values[i] = value_of_channel(i % norm_.channels);
    return values;
  }

  // Calls body(worker, part, first value, last value + 1).
  template <typename Body>
  void each_part(const Body& body) const {
    parallel_for(norm_.parts, workers_, [&](int worker, int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part)
        body(worker, part, norm_.rows * part / norm_.parts * norm_.channels,
             norm_.rows * (part + 1) / norm_.parts * norm_.channels);
    });
  }

  // Two sums of each channel over all rows, (2, channels). Within a part Real, across parts double.
  template <typename Add>
  std::vector<double> sums(const Add& add) const {
    const int64_t channels = norm_.channels;
    std::vector<AlignedValues<Real<T>>> tiles(workers_, AlignedValues<Real<T>>(2 * tile_));
    auto* partial = static_cast<Real<T>*>(norm_.workspace);
    each_part([&](int worker, int64_t part, int64_t begin, int64_t end) {
      AlignedValues<Real<T>>& sum = tiles[worker];
      std::fill(sum.data(), sum.data() + 2 * tile_, Real<T>(0));
      add(begin, end, sum.data(), sum.data() + tile_);
      Real<T>* out = partial + part * 2 * channels;
      for (int64_t which = 0; which < 2; ++which)
        for (int64_t c = 0; c < channels; ++c) {
          Real<T> total = 0;
          for (int64_t k = 0; k < repeats_; ++k) total += sum[which * tile_ + k * channels + c];
          out[which * channels + c] = total;
        }
    });
    std::vector<double> totals(2 * channels);
    for (int64_t part = 0; part < norm_.parts; ++part)
      for (int64_t i = 0; i < 2 * channels; ++i) totals[i] += partial[part * 2 * channels + i];
    return totals;
  }

 private:
  const BatchNorm& norm_;
  const int64_t repeats_, tile_;
  const int workers_;
};

// The per-channel values of both directions.
template <typename T>
struct PerChannel {
  explicit PerChannel(const BatchNorm& norm)
      : beta(static_cast<const Real<T>*>(norm.beta)),
        gamma(static_cast<const Real<T>*>(norm.gamma)),
        mean(static_cast<Real<T>*>(norm.mean)),
        var(static_cast<Real<T>*>(norm.var)),
        eps(norm.eps) {}
  Real<T> inv_std(int64_t c) const { return inv_std_of_var(var[c], eps); }
  Real<T> scale(int64_t c) const { return gamma ? inv_std(c) * gamma[c] : inv_std(c); }

  const Real<T>*beta, *gamma;
  Real<T>*mean, *var;
  double eps;
};

template <typename T>
const char* forward(const BatchNorm& norm, const void* x, const void* residual, void* y,
                    int threads) {
  const RowParts<T> work(norm, threads);
  const PerChannel<T> channel(norm);
  MapPass<T> pass{};
  pass.tile = work.tile();
  pass.relu = norm.relu;
  pass.x = static_cast<const T*>(x);
  pass.residual = static_cast<const T*>(residual);
  pass.result = static_cast<T*>(y);
  if (!norm.frozen) {
    const auto origin = work.repeated([&](int64_t c) { return widen(pass.x[c]); });
    pass.mean = origin.data();
    const auto sums = work.sums([&](int64_t begin, int64_t end, Real<T>* first, Real<T>* second) {
      add_sums(pass, begin, end, first, second);
    });
    for (int64_t c = 0; c < norm.channels; ++c) {
      const MeanVar m = mean_var_from_sums(sums[c], sums[norm.channels + c], origin[c], norm.rows);
      channel.mean[c] = static_cast<Real<T>>(m.mean);
      channel.var[c] = static_cast<Real<T>>(m.var);
    }
  }
  if (!y) return nullptr;
  const auto mean = work.repeated([&](int64_t c) { return channel.mean[c]; });
  const auto scale = work.repeated([&](int64_t c) { return channel.scale(c); });
  const auto beta = work.repeated([&](int64_t c) { return channel.beta[c]; });
  pass.mean = mean.data();
  pass.scale = scale.data();
  pass.beta = beta.data();
  work.each_part([&](int, int64_t, int64_t begin, int64_t end) { write_result(pass, begin, end); });
  return nullptr;
}

template <typename T>
const char* backward(const BatchNorm& norm, const void* x, const void* y, const void* grad_y,
                     void* grad_x, void* grad_residual, void* grad_beta, void* grad_gamma,
                     int threads) {
  const RowParts<T> work(norm, threads);
  const PerChannel<T> channel(norm);
  const auto mean = work.repeated([&](int64_t c) { return channel.mean[c]; });
  const auto scale = work.repeated([&](int64_t c) { return channel.scale(c); });
  const auto beta = work.repeated([&](int64_t c) { return channel.beta[c]; });
  MapPass<T> pass{};
  pass.tile = work.tile();
  pass.relu = norm.relu;
  pass.mean = mean.data();
  pass.scale = scale.data();
  pass.beta = beta.data();
  pass.x = static_cast<const T*>(x);
  pass.y = static_cast<const T*>(y);
  pass.grad_y = static_cast<const T*>(grad_y);
  pass.result = static_cast<T*>(grad_x);
  pass.grad_residual = static_cast<T*>(grad_residual);
  auto* out_beta = static_cast<Real<T>*>(grad_beta);
  auto* out_gamma = static_cast<Real<T>*>(grad_gamma);
  if (!norm.sums_given) {
    const auto sums = work.sums([&](int64_t begin, int64_t end, Real<T>* first, Real<T>* second) {
      add_grad_sums(pass, begin, end, first, second);
    });
    for (int64_t c = 0; c < norm.channels; ++c) {
      out_beta[c] = static_cast<Real<T>>(sums[c]);
      out_gamma[c] = static_cast<Real<T>>(sums[norm.channels + c] * channel.inv_std(c));
    }
  }
  if (!grad_x) return nullptr;
  const auto coefficients = [&](int64_t c) {
    return bn_grad_coefficients(channel.scale(c), channel.inv_std(c), out_beta[c], out_gamma[c],
                                norm.rows, norm.frozen);
  };
  const auto x_centred_scale = work.repeated([&](int64_t c) { return coefficients(c).x_centred; });
  const auto constant = work.repeated([&](int64_t c) { return coefficients(c).constant; });
  pass.x_centred_scale = x_centred_scale.data();
  pass.constant = constant.data();
  work.each_part([&](int, int64_t, int64_t begin, int64_t end) { write_grad_x(pass, begin, end); });
  return nullptr;
}

constexpr const char* kWrongDtype = "bn_act on the CPU takes float32, float64 and bfloat16";

}  // namespace
}  // namespace fasthg

const char* fasthg_bn_act_cpu(int dtype, const fasthg::BatchNorm* norm, const void* x,
                              const void* residual, void* y, int threads) {
  using namespace fasthg;
  if (dtype == kFloat32) return forward<float>(*norm, x, residual, y, threads);
  if (dtype == kFloat64) return forward<double>(*norm, x, residual, y, threads);
  if (dtype == kBFloat16) return forward<BFloat16>(*norm, x, residual, y, threads);
  return kWrongDtype;
}

const char* fasthg_bn_act_backward_cpu(int dtype, const fasthg::BatchNorm* norm, const void* x,
                                       const void* y, const void* grad_y, void* grad_x,
                                       void* grad_residual, void* grad_beta, void* grad_gamma,
                                       int threads) {
  using namespace fasthg;
  if (dtype == kFloat32)
    return backward<float>(*norm, x, y, grad_y, grad_x, grad_residual, grad_beta, grad_gamma,
                           threads);
  if (dtype == kFloat64)
    return backward<double>(*norm, x, y, grad_y, grad_x, grad_residual, grad_beta, grad_gamma,
                            threads);
  if (dtype == kBFloat16)
    return backward<BFloat16>(*norm, x, y, grad_y, grad_x, grad_residual, grad_beta, grad_gamma,
                              threads);
  return kWrongDtype;
}
