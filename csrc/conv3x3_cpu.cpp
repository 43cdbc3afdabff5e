// 3x3 convolution, padding 1, float32 on the CPU, by Winograd's F(4x4, 3x3); threads over chunks of
// tiles. conv3x3_math.h derives the transforms.
//
//   y = relu?(x * weight + bias), channels last, and the gradients of x and weight
//
// A tile of 4x4 results needs a patch of 6x6 inputs. Transformed, each of the 36 points is a matrix
// product: (tiles, channels) times (channels, outputs). That is 2.25 multiplications a result and
// channel in place of 9. Bias and ReLU are applied before y is written.
//
// Memory traffic: x is read once and y written once; the overlap of patches (36 reads for 16
// pixels) is served by the caches. The transformed weights are 4 times the weights, written once
// and read by every chunk. A chunk of up to 48 tiles goes through transform, products and transform
// back while it lies in the caches: with 128 channels its transformed inputs are 36 x 48 x 128
// floats, 0.9 MB. Transforming whole maps first would write and read 2.25 times x and y.
//
// Everything transformed lies in panels of 16 neighbouring channels, one cache line a row, so that
// the micro kernels read at fixed distances and keep 6 x 16 sums in registers.
//
// Trade-off: F(2x2, 3x3) would need 4 multiplications a result and is more exact; F(6x6, 3x3) needs
// 1.78 and is less exact. As it is, the root mean square error of 128 channels is 1e-6 of the
// results', twice that of a direct convolution, and NaN or infinity spreads over a tile. The
// weights' transform must be paid for, and panels must be filled: with few tiles or half-empty
// panels torch is faster (FEWEST_TILES and MOST_PADDING in fasthg/ops/conv3x3.py).
#include <algorithm>
#include <cstring>
#include <memory>

#include "conv3x3_math.h"
#include "ops.h"
#include "parallel.h"

namespace fasthg {
namespace {

constexpr int kAcross = 16;
constexpr int kDown = 6;        // 6 x 16 sums take 12 of AVX2's 16 registers
constexpr int64_t kChunk = 48;  // tiles; 24 to 48 are equally fast, for grad_weight 48 is fastest

struct alignas(64) Line {
  float at[kAcross];
};
constexpr Line kZeros = {};

// The transforms are written for any type; the compiler does not vectorise them by itself.
typedef float SimdVector __attribute__((vector_size(32)));
constexpr int kLanes = 8;

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t panel_count(int64_t channels) {
  return divide_up(channels, kAcross);
}

// Transforms one dimension of a panel of channels.
template <typename Transform>
FASTHG_HD void transform_once(const float* const* from, float* const* to) {
  for (int c = 0; c < kAcross; c += kLanes) {
    SimdVector values[Transform::kFrom], results[Transform::kTo];
#pragma GCC unroll 8
    for (int i = 0; i < Transform::kFrom; ++i)
      std::memcpy(&values[i], from[i] + c, sizeof(SimdVector));
    Transform::apply(values, results);
#pragma GCC unroll 8
    for (int i = 0; i < Transform::kTo; ++i)
      std::memcpy(to[i] + c, &results[i], sizeof(SimdVector));
  }
}

// Transforms both dimensions: rows first, then columns.
template <typename Transform, int size = Transform::kFrom, int points = Transform::kTo>
FASTHG_HD void transform(const float* const (&from)[size][size],
                         float* const (&to)[points][points]) {
  Line half[size][points];
  for (int i = 0; i < size; ++i) {
    float* row[points];
    for (int j = 0; j < points; ++j) row[j] = half[i][j].at;
    transform_once<Transform>(from[i], row);
  }
  for (int j = 0; j < points; ++j) {
    const float* column[size];
    float* out[points];
    for (int i = 0; i < size; ++i) column[i] = half[i][j].at;
    for (int i = 0; i < points; ++i) out[i] = to[i][j];
    transform_once<Transform>(column, out);
  }
}

// Maps with channels last, covered by tiles of 4x4 pixels.
template <typename T>
struct TiledMaps {
  T* at;  // (batch, height, width, channels)
  int64_t batch, height, width, channels;

  int64_t down() const { return divide_up(height, kTile); }
  int64_t across() const { return divide_up(width, kTile); }
  int64_t tiles() const { return batch * down() * across(); }

  // Pointers to side x side pixels that begin `margin` above and left of a tile; null outside the
  // map.
  template <int side>
  FASTHG_HD void pixel_pointers(int64_t tile, int margin, T* (&pixels)[side][side]) const {
    const int64_t in_image = down() * across();
    const int64_t top = tile % in_image / across() * kTile - margin;
    const int64_t left = tile % across() * kTile - margin;
    T* image = at + tile / in_image * height * width * channels;
    for (int i = 0; i < side; ++i)
      for (int j = 0; j < side; ++j) {
        const int64_t row = top + i, column = left + j;
        const bool inside = row >= 0 && row < height && column >= 0 && column < width;
        pixels[i][j] = inside ? image + (row * width + column) * channels : nullptr;
      }
  }
};

// Lines from one point to the next of `rows` tiles, stored as (points, panels, rows). One line more
// than needed lies between points: powers of two would map all points to the same cache sets.
inline int64_t point_stride_of(int64_t panels, int64_t rows) {
  return panels * rows + 1;
}

// Transforms tiles [begin, end), each with `margin` pixels around.
template <typename Transform>
FASTHG_HD void transform_tiles(const TiledMaps<const float>& maps, int margin, int64_t begin,
                               int64_t end, int64_t rows, Line* out) {
  constexpr int side = Transform::kFrom;
  const int64_t panels = panel_count(maps.channels), point_stride = point_stride_of(panels, rows);
  for (int64_t tile = begin; tile < end; ++tile) {
    const float* pixels[side][side];
    maps.pixel_pointers(tile, margin, pixels);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t first = panel * kAcross;
      const int64_t width = std::min<int64_t>(kAcross, maps.channels - first);
      const float* from[side][side];
      Line partial[side][side];
      for (int i = 0; i < side; ++i)
        for (int j = 0; j < side; ++j) {
          from[i][j] = pixels[i][j] ? pixels[i][j] + first : kZeros.at;
          if (width == kAcross) continue;
          partial[i][j] = kZeros;
          std::copy_n(from[i][j], width, partial[i][j].at);
          from[i][j] = partial[i][j].at;
        }
      float* to[kReach][kReach];
      Line* line = out + panel * rows + (tile - begin);
      for (int point = 0; point < kPoints; ++point, line += point_stride)
        to[point / kReach][point % kReach] = line->at;
      transform<Transform>(from, to);
    }
  }
}

// Multiplies kDown rows with a panel of outputs. left: (panels, rows); right: (channels,).
FASTHG_HD void multiply(const Line* left, int64_t panels, int64_t rows, const Line* right,
                        Line* out) {
  float sums[kDown][kAcross] = {};
  for (int64_t panel = 0; panel < panels; ++panel, left += rows)
    for (int c = 0; c < kAcross; ++c, ++right)
#pragma GCC unroll 8
      for (int i = 0; i < kDown; ++i)
#pragma omp simd
        for (int j = 0; j < kAcross; ++j) sums[i][j] += left[i].at[c] * right->at[j];
  for (int i = 0; i < kDown; ++i)
    for (int j = 0; j < kAcross; ++j) out[i].at[j] = sums[i][j];
}

// out += left^T right over the rows, for `down` channels of left from `first` on and a panel of
// right; overwrite: out = left^T right.
template <int down>
FASTHG_HD void accumulate(const Line* left, int first, const Line* right, int64_t rows,
                          bool overwrite, Line* out) {
  float sums[down][kAcross];
  for (int i = 0; i < down; ++i)
    for (int j = 0; j < kAcross; ++j) sums[i][j] = overwrite ? 0 : out[first + i].at[j];
  for (int64_t row = 0; row < rows; ++row)
#pragma GCC unroll 8
    for (int i = 0; i < down; ++i)
#pragma omp simd
      for (int j = 0; j < kAcross; ++j) sums[i][j] += left[row].at[first + i] * right[row].at[j];
  for (int i = 0; i < down; ++i)
    for (int j = 0; j < kAcross; ++j) out[first + i].at[j] = sums[i][j];
}

// Weights and their transform: (points, panels of outputs, channels up to whole panels).
struct Weights {
  float* at;
  const int64_t* strides;  // of (outputs, in, 3, 3)
  int64_t outputs, in;
  Line* transformed;

  int64_t padded() const { return panel_count(in) * kAcross; }
  int64_t point_stride() const { return panel_count(outputs) * padded(); }
  float* tap(int64_t output, int64_t channel, int i, int j) const {
    return at + output * strides[0] + channel * strides[1] + i * strides[2] + j * strides[3];
  }
};

// Transforms the weights of all outputs and of channels [begin, end); channels from `in` on are
// padding and become zeros.
FASTHG_VECTOR_CLONES void transform_weights(const Weights& w, int64_t begin, int64_t end) {
  for (int64_t first = 0; first < w.outputs; first += kAcross)
    for (int64_t channel = begin; channel < end; ++channel) {
      Line taps[kTaps][kTaps] = {};
      const float* from[kTaps][kTaps];
      for (int i = 0; i < kTaps; ++i)
        for (int j = 0; j < kTaps; ++j) {
          from[i][j] = taps[i][j].at;
          for (int64_t c = first; c < std::min(first + kAcross, w.outputs); ++c)
            if (channel < w.in) taps[i][j].at[c - first] = *w.tap(c, channel, i, j);
        }
      float* to[kReach][kReach];
      Line* line = w.transformed + first / kAcross * w.padded() + channel;
      for (int point = 0; point < kPoints; ++point, line += w.point_stride())
        to[point / kReach][point % kReach] = line->at;
      transform<WeightTransform>(from, to);
    }
}

// The gradient of the weights of channels [begin, end), from sums over `parts` of the tiles.
FASTHG_VECTOR_CLONES void write_weight_gradient(const Weights& w, int64_t parts, int64_t begin,
                                                int64_t end) {
  for (int64_t first = 0; first < w.outputs; first += kAcross)
    for (int64_t channel = begin; channel < end; ++channel) {
      Line sums[kReach][kReach] = {}, taps[kTaps][kTaps];
      const float* from[kReach][kReach];
      float* to[kTaps][kTaps];
      const Line* line = w.transformed + first / kAcross * w.padded() + channel;
      for (int64_t part = 0; part < parts; ++part)
        for (int point = 0; point < kPoints; ++point, line += w.point_stride())
          for (int c = 0; c < kAcross; ++c)
            sums[point / kReach][point % kReach].at[c] += line->at[c];
      for (int i = 0; i < kReach; ++i)
        for (int j = 0; j < kReach; ++j) from[i][j] = sums[i][j].at;
      for (int i = 0; i < kTaps; ++i)
        for (int j = 0; j < kTaps; ++j) to[i][j] = taps[i][j].at;
      transform<GradWeightTransform>(from, to);
      for (int64_t c = first; c < std::min(first + kAcross, w.outputs); ++c)
        for (int i = 0; i < kTaps; ++i)
          for (int j = 0; j < kTaps; ++j) *w.tap(c, channel, i, j) = taps[i][j].at[c - first];
    }
}

struct Convolution {
  TiledMaps<const float> x;
  Weights weights;
  const float* bias;  // null = 0
  bool relu;
  TiledMaps<float> y;
};

// Transforms a panel of one tile back, adds the bias, applies the ReLU, and writes the pixels that
// lie within the map.
FASTHG_HD void write_tile(const Convolution& conv, const Line* products, int64_t point_stride,
                          int64_t tile, int64_t first) {
  Line results[kTile][kTile], offset = kZeros;
  const float* from[kReach][kReach];
  float *to[kTile][kTile], *pixels[kTile][kTile];
  for (int point = 0; point < kPoints; ++point, products += point_stride)
    from[point / kReach][point % kReach] = products->at;
  for (int i = 0; i < kTile; ++i)
    for (int j = 0; j < kTile; ++j) to[i][j] = results[i][j].at;
  transform<OutputTransform>(from, to);
  const int64_t width = std::min<int64_t>(kAcross, conv.y.channels - first);
  if (conv.bias) std::copy_n(conv.bias + first, width, offset.at);
  conv.y.pixel_pointers(tile, 0, pixels);
  for (int i = 0; i < kTile; ++i)
    for (int j = 0; j < kTile; ++j) {
      if (!pixels[i][j]) continue;
      float* values = results[i][j].at;
      for (int c = 0; c < kAcross; ++c) {
        const float value = values[c] + offset.at[c];
        values[c] = conv.relu && value < 0 ? 0.0f : value;
      }
      if (width == kAcross)
        std::memcpy(pixels[i][j] + first, values, sizeof(Line));
      else
        std::copy_n(values, width, pixels[i][j] + first);
    }
}

FASTHG_VECTOR_CLONES void convolve(const Convolution& conv, int64_t begin, int64_t end,
                                   int64_t rows, Line* inputs, Line* products) {
  const Weights& w = conv.weights;
  const int64_t panels = panel_count(w.in), outputs = panel_count(w.outputs);
  const int64_t point_stride = point_stride_of(outputs, rows);
  transform_tiles<InputTransform>(conv.x, 1, begin, end, rows, inputs);
  for (int64_t point = 0; point < kPoints; ++point)
    for (int64_t panel = 0; panel < outputs; ++panel)
      for (int64_t row = 0; row < end - begin; row += kDown)
        multiply(inputs + point * point_stride_of(panels, rows) + row, panels, rows,
                 w.transformed + point * w.point_stride() + panel * w.padded(),
                 products + point * point_stride + panel * rows + row);
  for (int64_t tile = begin; tile < end; ++tile)
    for (int64_t panel = 0; panel < outputs; ++panel)
      write_tile(conv, products + panel * rows + (tile - begin), point_stride, tile,
                 panel * kAcross);
}

FASTHG_VECTOR_CLONES void add_weight_products(const TiledMaps<const float>& x,
                                              const TiledMaps<const float>& grad_y, int64_t begin,
                                              int64_t end, bool overwrite, Line* inputs,
                                              Line* gradients, Line* sums) {
  const int64_t panels = panel_count(x.channels), outputs = panel_count(grad_y.channels);
  const int64_t rows = end - begin;
  transform_tiles<InputTransform>(x, 1, begin, end, rows, inputs);
  transform_tiles<GradOutputTransform>(grad_y, 0, begin, end, rows, gradients);
  for (int64_t point = 0; point < kPoints; ++point)
    for (int64_t output = 0; output < outputs; ++output) {
      const Line* right = gradients + point * point_stride_of(outputs, rows) + output * rows;
      for (int64_t panel = 0; panel < panels; ++panel, sums += kAcross) {
        const Line* left = inputs + point * point_stride_of(panels, rows) + panel * rows;
        accumulate<6>(left, 0, right, rows, overwrite, sums);
        accumulate<5>(left, 6, right, rows, overwrite, sums);
        accumulate<5>(left, 11, right, rows, overwrite, sums);
      }
    }
}

}  // namespace
}  // namespace fasthg

const char* fasthg_conv3x3_cpu(int dtype, const void* x, const int64_t shape[4], const void* weight,
                               int64_t outputs, const int64_t strides[4], const void* bias,
                               bool relu, void* workspace, void* y, int threads) {
  using namespace fasthg;
  if (dtype != kFloat32) return "conv3x3 on the CPU takes float32";
  const int64_t batch = shape[0], height = shape[1], width = shape[2], in = shape[3];
  const Convolution conv{{static_cast<const float*>(x), batch, height, width, in},
                         {const_cast<float*>(static_cast<const float*>(weight)), strides, outputs,
                          in, static_cast<Line*>(workspace)},
                         static_cast<const float*>(bias),
                         relu,
                         {static_cast<float*>(y), batch, height, width, outputs}};
  const int64_t channels = conv.weights.padded();
  parallel_for(
      channels, worker_count(channels, outputs * kPoints, threads),
      [&](int, int64_t begin, int64_t end) { transform_weights(conv.weights, begin, end); });
  // Enough chunks for all threads: how tiles are divided makes no difference to a result.
  const int64_t tiles = conv.x.tiles();
  const int64_t rows =
      std::min(kChunk, divide_up(tiles, kDown * kSharesPerWorker * threads) * kDown);
  const int64_t chunks = divide_up(tiles, rows), work = rows * kPoints * in * outputs / kAcross;
  parallel_for(chunks, worker_count(chunks, work, threads), [&](int, int64_t begin, int64_t end) {
    const int64_t inputs = kPoints * point_stride_of(panel_count(in), rows);
    const int64_t products = kPoints * point_stride_of(panel_count(outputs), rows);
    const std::unique_ptr<Line[]> scratch(new Line[inputs + products]);
    // Rows after the last tile are multiplied as well, so they must hold numbers.
    std::fill_n(scratch.get(), inputs, kZeros);
    for (int64_t chunk = begin; chunk < end; ++chunk)
      convolve(conv, chunk * rows, std::min((chunk + 1) * rows, tiles), rows, scratch.get(),
               scratch.get() + inputs);
  });
  return nullptr;
}

const char* fasthg_conv3x3_weight_backward_cpu(int dtype, const void* x, const int64_t shape[4],
                                               const void* grad_y, int64_t outputs, int64_t parts,
                                               void* workspace, void* grad_weight,
                                               const int64_t strides[4], int threads) {
  using namespace fasthg;
  if (dtype != kFloat32) return "conv3x3 on the CPU takes float32";
  const int64_t batch = shape[0], height = shape[1], width = shape[2], in = shape[3];
  const Weights weights{static_cast<float*>(grad_weight), strides, outputs, in,
                        static_cast<Line*>(workspace)};
  const TiledMaps<const float> maps{static_cast<const float*>(x), batch, height, width, in};
  const TiledMaps<const float> gradient{static_cast<const float*>(grad_y), batch, height, width,
                                        outputs};
  const int64_t tiles = maps.tiles(), in_part = kPoints * weights.point_stride();
  const int64_t rows = std::min(kChunk, divide_up(tiles, parts));
  const int64_t work = divide_up(tiles, parts) * kPoints * in * outputs / kAcross;
  parallel_for(parts, worker_count(parts, work, threads), [&](int, int64_t begin, int64_t end) {
    const int64_t inputs = kPoints * point_stride_of(panel_count(in), rows);
    const int64_t gradients = kPoints * point_stride_of(panel_count(outputs), rows);
    const std::unique_ptr<Line[]> scratch(new Line[inputs + gradients]);
    for (int64_t part = begin; part < end; ++part) {
      Line* sums = weights.transformed + part * in_part;
      const int64_t first = tiles * part / parts, last = tiles * (part + 1) / parts;
      for (int64_t tile = first; tile < last; tile += rows)
        add_weight_products(maps, gradient, tile, std::min(tile + rows, last), tile == first,
                            scratch.get(), scratch.get() + inputs, sums);
    }
  });
  parallel_for(
      in, worker_count(in, parts * outputs * kPoints, threads),
      [&](int, int64_t begin, int64_t end) { write_weight_gradient(weights, parts, begin, end); });
  return nullptr;
}
