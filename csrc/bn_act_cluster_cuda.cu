// Batch norm, residual and ReLU by clusters of blocks (compute capability 9.0), one launch each way
// for maps of many rows. Formulas: bn_act_maps.cuh.
//
// A cluster owns a slice of each row, 2 or 4 vectors of 16 bytes, over all rows: whole sectors of
// 32 bytes. Its blocks share the rows. Each reads its own once, adds up their sums and keeps what
// fits of them in its shared memory; then the blocks hand each other their sums, and each computes
// its part of the result from what it kept. What did not fit is read again, last read first: it may
// still be in the L2 cache. Channels are independent, so clusters never wait for each other. That
// leaves out the finishing kernels of bn_act_cuda.cu and lets the kernel run beside others.
//
// Sums: the rows are cut into kPieces pieces, and a piece's rows are shared by kLines lines of
// threads. A line adds up its rows in order, then eight lines are added as a tree, the octets of a
// piece in order and the pieces in order. None of this depends on the cluster's size or the slice's
// width: results are the same in every run and on every GPU, whichever it takes. No atomics.
//
// Memory traffic, in maps: forward 2 (x read, y written), 1 more with a residual. Backward 3 (x and
// grad_y read, grad_x written), with residual and ReLU 5 (y read, grad_residual written). In both
// directions x, and in the backward grad_y, is read once more as far as it does not fit: 8 clusters
// of 16 blocks keep 26 MiB. bn_act_cuda.cu moves 3, 4, 5 and 8.
//
// Trade-off: a block needs all of a multiprocessor's shared memory, so little else runs there
// meanwhile. Clusters of 16 blocks need a GPU's leave and 16 free multiprocessors in one of its
// parts; fasthg/ops/bn_act.py asks how many there are room for, and takes three launches where too
// many multiprocessors would be idle (64 channels of half types fill only half of them).
//
// Not yet run on a GPU. Computed for an H200 and bfloat16, batch 32 of 64 x 64, in us: 128 channels
// forward 39.6 -> 21 and backward 64 -> 41, 256 channels 75 -> 53 and 118 -> 90; batch 8 of 32 x
// 32, 11.5 -> 6 and 14.2 -> 6.
#include "bn_act_maps.cuh"
#include "bn_act_math.h"
#include "cluster.cuh"
#include "cuda_utils.cuh"
#include "ops.h"

namespace fasthg {
namespace {

constexpr int kThreads = 512;
constexpr int kLines = 128;  // of threads that share a piece of the rows
constexpr int kPieces = 32;
constexpr int kOctet = 8;  // lines whose sums a warp adds up
constexpr int kOctets = kLines / kOctet;
constexpr int kMostBlocks = 16;

// How clusters cover the maps.
struct ClusterShape {
  int64_t rows;
  int channels;
  int blocks;    // of a cluster
  int across;    // vectors of a slice: threads next to each other
  int per_line;  // rows of a piece that a line takes, at most
  int kept;      // rows of a thread that stay in shared memory: the first ones
};

// What a line takes of a piece: every kLines-th row from `first` on, of which the first `kept` stay
// in shared memory.
struct LineRows {
  int64_t first;
  int count, kept;
};

// How a block's shared memory is divided; each part holds whole vectors.
template <typename Real>
struct Shared {
  Real* totals;      // (kPieces, 2, width): sums of the pieces, from all blocks
  Real* octets;      // (groups, kOctets, 2, width)
  Real* statistics;  // (2, width): mean and variance, or grad_beta and grad_gamma
  unsigned char* kept;

  static FASTHG_HD int reals(int groups, int width) {
    return 2 * width * (kPieces + groups * kOctets + 1);
  }
  __device__ Shared(unsigned char* shared, int groups, int width)
      : totals(reinterpret_cast<Real*>(shared)),
        octets(totals + kPieces * 2 * width),
        statistics(octets + groups * kOctets * 2 * width),
        kept(reinterpret_cast<unsigned char*>(totals + reals(groups, width))) {}
};

template <typename V, typename T>
__device__ V load_vector(const T* from) {
  return *reinterpret_cast<const V*>(from);
}

// use(i, load(i)) for i < count, in order; `batch` loads are in flight before the first is used.
// Left to itself, the compiler may not move a load before a store of the loop.
template <int batch, typename Load, typename Use>
__device__ void in_batches(int count, const Load& load, const Use& use) {
  int i = 0;
  for (; i + batch <= count; i += batch) {
    decltype(load(0)) loaded[batch];
#pragma unroll
    for (int k = 0; k < batch; ++k) loaded[k] = load(i + k);
#pragma unroll
    for (int k = 0; k < batch; ++k) use(i + k, loaded[k]);
  }
  for (; i < count; ++i) use(i, load(i));
}

#if FASTHG_CLUSTERS

// Where a thread works: at one vector of its cluster's slice, in one line of a group of lines.
// In each round every group of a block takes a piece of the rows.
template <int vector>
struct Place {
  int column, line, group, groups, rank, rounds, width, channel;

  __device__ explicit Place(const ClusterShape& shape)
      : column(static_cast<int>(threadIdx.x) % shape.across),
        line(static_cast<int>(threadIdx.x) / shape.across % kLines),
        group(static_cast<int>(threadIdx.x) / (shape.across * kLines)),
        groups(kThreads / (shape.across * kLines)),
        rank(cluster_rank()),
        rounds(kPieces / (shape.blocks * groups)),
        width(shape.across * vector),
        channel(static_cast<int>(blockIdx.x) / shape.blocks * width + column * vector) {}

  __device__ int piece(int round, int of_group) const {
    return (rank * rounds + round) * groups + of_group;
  }

  __device__ LineRows rows(const ClusterShape& shape, int round) const {
    const int64_t number = piece(round, group);
    const int64_t first = shape.rows * number / kPieces + line;
    const int64_t end = shape.rows * (number + 1) / kPieces;
    const bool none = first >= end || channel >= shape.channels;
    const int count = none ? 0 : static_cast<int>((end - first + kLines - 1) / kLines);
    const int room = max(shape.kept - round * shape.per_line, 0);
    return {first, count, min(count, room)};
  }
};

// One step of a tree: a lane hands the half of its values that its partner goes on with to it, and
// adds what it gets to the other half; of one value both keep the sum. `half` is a constant, as the
// values must stay in registers.
template <int half, int count, typename Real>
__device__ void exchange(Real (&values)[count], bool upper, int mask) {
  if constexpr (half == 0) {
    values[0] += shuffle_xor(values[0], mask);
  } else {
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const Real other = shuffle_xor(upper ? values[i] : values[i + half], mask);
      values[i] = (upper ? values[i + half] : values[i]) + other;
    }
  }
}

// Adds up the two sums of each channel over the lines of each group, and writes them to the totals
// of every block of the cluster.
template <int vector, typename Real>
__device__ void share_sums(const ClusterShape& shape, const Place<vector>& place, int round,
                           Real (&sums)[2 * vector], const Shared<Real>& shared) {
  constexpr int count = 2 * vector, left = count > kOctet ? count / kOctet : 1;
  exchange<count / 2>(sums, place.line & 4, 4 * shape.across);
  exchange<count / 4>(sums, place.line & 2, 2 * shape.across);
  exchange<count / 8>(sums, place.line & 1, shape.across);
  const int pair = 2 * place.width, in_octet = place.line % kOctet * count;
  Real* octet = shared.octets + (place.group * kOctets + place.line / kOctet) * pair;
  if (in_octet % kOctet == 0) {  // else the line before has the same sum
#pragma unroll
    for (int i = 0; i < left; ++i) {
      const int value = in_octet / kOctet + i;
      octet[value / vector * place.width + place.column * vector + value % vector] = sums[i];
    }
  }
  if (round == 0) cluster_wait();  // every block must have started before one writes to it
  __syncthreads();                 // every warp's octets must lie there before they are added up
  for (int i = threadIdx.x; i < place.groups * pair; i += kThreads) {
    const Real* from = shared.octets + i / pair * kOctets * pair + i % pair;
    double sum = 0;
#pragma unroll
    for (int k = 0; k < kOctets; ++k) sum += from[k * pair];
    Real* to = shared.totals + place.piece(round, i / pair) * pair + i % pair;
    for (int block = 0; block < shape.blocks; ++block)
      *map_shared_rank(to, block) = static_cast<Real>(sum);
  }
  __syncthreads();  // the octets must have been read before the next round writes others
}

// Adds up the pieces of a channel of the slice.
template <typename Real>
__device__ SumPair add_pieces(const Real* totals, int width, int channel) {
  SumPair sum{0, 0};
#pragma unroll 8
  for (int piece = 0; piece < kPieces; ++piece) {
    sum.first += totals[2 * piece * width + channel];
    sum.second += totals[(2 * piece + 1) * width + channel];
  }
  return sum;
}

#endif

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    bn_act_cluster_kernel(BatchNorm norm, ClusterShape shape, BnActMaps<T> maps) {
#if FASTHG_CLUSTERS
  constexpr int vector = kVectorLength<T>, batch = 4;
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  struct Loaded {
    Values x, added;
  };
  FASTHG_SHARED(memory);
  cluster_arrive();
  const Place<vector> place(shape);
  const Shared<Real> shared(memory, place.groups, place.width);
  const int64_t step = int64_t{kLines} * shape.channels;
  const bool idle = place.channel >= shape.channels;
  const Values origin = load_vector<Values>(maps.x + (idle ? 0 : place.channel));
  for (int round = 0; round < place.rounds; ++round) {
    const LineRows rows = place.rows(shape, round);
    const T* from = maps.x + rows.first * shape.channels + place.channel;
    // A thread reads only what it kept itself, so that needs no barrier.
    Values* kept =
        reinterpret_cast<Values*>(shared.kept) + round * shape.per_line * kThreads + threadIdx.x;
    Real sums[2 * vector] = {};
    in_batches<batch>(
        rows.count, [&](int i) { return load_vector<Values>(from + i * step); },
        [&](int i, const Values& x) {
          if (i < rows.kept) keep_whole(x, kept + i * kThreads);
#pragma unroll
          for (int k = 0; k < vector; ++k) {
            const Real value = static_cast<Real>(x.value[k]) - static_cast<Real>(origin.value[k]);
            sums[k] += value;
            sums[vector + k] += value * value;
          }
        });
    share_sums(shape, place, round, sums, shared);
  }
  cluster_sync();  // the sums of all blocks must have arrived; after this, none writes to another
  const int slice = static_cast<int>(blockIdx.x) / shape.blocks * place.width;
  const int own = static_cast<int>(threadIdx.x);
  if (own < place.width && slice + own < shape.channels) {
    const SumPair sum = add_pieces(shared.totals, place.width, own);
    const double start = static_cast<double>(static_cast<Real>(maps.x[slice + own]));
    const MeanVar result = mean_var_from_sums(sum.first, sum.second, start, shape.rows);
    const Real mean = static_cast<Real>(result.mean), var = static_cast<Real>(result.var);
    shared.statistics[own] = mean;
    shared.statistics[place.width + own] = var;
    if (place.rank == 0) {
      static_cast<Real*>(norm.mean)[slice + own] = mean;
      static_cast<Real*>(norm.var)[slice + own] = var;
    }
  }
  __syncthreads();  // every thread reads the statistics that the first ones wrote
  if (idle) return;
  const Real* statistics = shared.statistics + place.column * vector;
  const ChannelParams<Real, vector> channel(norm, place.channel, statistics,
                                            statistics + place.width);
  for (int round = place.rounds - 1; round >= 0; --round) {
    const LineRows rows = place.rows(shape, round);
    const int64_t first = rows.first * shape.channels + place.channel;
    const Values* kept =
        reinterpret_cast<Values*>(shared.kept) + round * shape.per_line * kThreads + threadIdx.x;
    // Backwards through the rows, so that those come first which were read last.
    in_batches<batch>(
        rows.count,
        [&](int i) {
          const int row = rows.count - 1 - i;
          const int64_t offset = first + row * step;
          Loaded loaded;
          loaded.x = row < rows.kept ? load_whole(kept + row * kThreads)
                                     : load_vector<Values>(maps.x + offset);
          loaded.added = maps.residual ? load_vector<Values>(maps.residual + offset) : loaded.x;
          return loaded;
        },
        [&](int i, const Loaded& loaded) {
          const int64_t offset = first + (rows.count - 1 - i) * step;
          write_result(norm, maps, offset, channel, loaded.x, loaded.added);
        });
  }
#endif
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    bn_act_backward_cluster_kernel(BatchNorm norm, ClusterShape shape, BnActMaps<T> maps,
                                   typename Accumulate<T>::type* grad_beta,
                                   typename Accumulate<T>::type* grad_gamma) {
#if FASTHG_CLUSTERS
  constexpr int vector = kVectorLength<T>, batch = 2;
  using Real = typename Accumulate<T>::type;
  using Values = Vector<T, vector>;
  struct Loaded {
    Values x, grad_y, y;
  };
  FASTHG_SHARED(memory);
  cluster_arrive();
  const Place<vector> place(shape);
  const Shared<Real> shared(memory, place.groups, place.width);
  const int64_t step = int64_t{kLines} * shape.channels;
  const bool idle = place.channel >= shape.channels;
  const ChannelParams<Real, vector> channel(norm, idle ? 0 : place.channel);
  Values* const kept_x = reinterpret_cast<Values*>(shared.kept) + threadIdx.x;
  Values* const kept_grad_y = kept_x + shape.kept * kThreads;  // after the ReLU mask
  for (int round = 0; round < place.rounds; ++round) {
    const LineRows rows = place.rows(shape, round);
    const int64_t first = rows.first * shape.channels + place.channel;
    const int slot = round * shape.per_line;
    Real sums[2 * vector] = {};
    in_batches<batch>(
        rows.count,
        [&](int i) {
          const int64_t offset = first + i * step;
          Loaded loaded;
          loaded.x = load_vector<Values>(maps.x + offset);
          loaded.grad_y = load_vector<Values>(maps.grad_y + offset);
          loaded.y = maps.y ? load_vector<Values>(maps.y + offset) : loaded.x;
          return loaded;
        },
        [&](int i, const Loaded& loaded) {
          Values values = loaded.grad_y;
          Real grad_y[vector];
#pragma unroll
          for (int k = 0; k < vector; ++k) grad_y[k] = static_cast<Real>(values.value[k]);
          apply_relu_mask(norm, maps, channel, loaded.x, loaded.y, grad_y);
#pragma unroll
          for (int k = 0; k < vector; ++k) {
            values.value[k] = static_cast<T>(grad_y[k]);  // as loaded, or 0: no rounding
            sums[k] += grad_y[k];
            sums[vector + k] +=
                grad_y[k] * (static_cast<Real>(loaded.x.value[k]) - channel.mean[k]);
          }
          if (i < rows.kept) {
            keep_whole(loaded.x, kept_x + (slot + i) * kThreads);
            keep_whole(values, kept_grad_y + (slot + i) * kThreads);
          }
          if (maps.grad_residual) store_whole(values, maps.grad_residual + first + i * step);
        });
    share_sums(shape, place, round, sums, shared);
  }
  cluster_sync();  // the sums of all blocks must have arrived; after this, none writes to another
  const int slice = static_cast<int>(blockIdx.x) / shape.blocks * place.width;
  const int own = static_cast<int>(threadIdx.x);
  if (own < place.width && slice + own < shape.channels) {
    const SumPair sum = add_pieces(shared.totals, place.width, own);
    const Real var = static_cast<const Real*>(norm.var)[slice + own];
    const Real total_beta = static_cast<Real>(sum.first);
    const Real total_gamma = static_cast<Real>(sum.second * inv_std_of_var(var, norm.eps));
    shared.statistics[own] = total_beta;
    shared.statistics[place.width + own] = total_gamma;
    if (place.rank == 0) {
      grad_beta[slice + own] = total_beta;
      grad_gamma[slice + own] = total_gamma;
    }
  }
  __syncthreads();  // every thread reads the totals that the first ones wrote
  if (idle) return;
  const Real* totals = shared.statistics + place.column * vector;
  Real x_centred_scale[vector], constant[vector];
#pragma unroll
  for (int k = 0; k < vector; ++k) {
    const BnGradCoefficients<Real> coefficients =
        bn_grad_coefficients(channel.scale[k], channel.inv_std[k], totals[k],
                             totals[place.width + k], shape.rows, false);
    x_centred_scale[k] = coefficients.x_centred;
    constant[k] = coefficients.constant;
  }
  // What this thread wrote there is grad_y after the mask, which saves reading y again.
  const T* again = maps.grad_residual ? maps.grad_residual : maps.grad_y;
  for (int round = place.rounds - 1; round >= 0; --round) {
    const LineRows rows = place.rows(shape, round);
    const int64_t first = rows.first * shape.channels + place.channel;
    const int slot = round * shape.per_line;
    // Backwards through the rows, so that those come first which were read last.
    in_batches<batch>(
        rows.count,
        [&](int i) {
          const int row = rows.count - 1 - i;
          Loaded loaded;
          if (row < rows.kept) {
            loaded.x = load_whole(kept_x + (slot + row) * kThreads);
            loaded.grad_y = load_whole(kept_grad_y + (slot + row) * kThreads);
          } else {
            loaded.x = load_vector<Values>(maps.x + first + row * step);
            loaded.grad_y = load_vector<Values>(again + first + row * step);
          }
          return loaded;
        },
        [&](int i, const Loaded& loaded) {
          Real grad_y[vector];
#pragma unroll
          for (int k = 0; k < vector; ++k) grad_y[k] = static_cast<Real>(loaded.grad_y.value[k]);
          // Twice the same mask where grad_y was kept.
          if (!maps.grad_residual) apply_relu_mask(norm, maps, channel, loaded.x, loaded.x, grad_y);
          write_grad_x(maps, first + (rows.count - 1 - i) * step, channel, x_centred_scale,
                       constant, loaded.x, grad_y);
        });
  }
#endif
}

template <typename T>
bool run(const BnActCall& call, const char** refusal) {
  using Real = typename Accumulate<T>::type;
  const BatchNorm& norm = call.norm;
  const int blocks = norm.cluster_blocks, across = norm.cluster_vectors;
  if (!blocks || norm.frozen || !in_vectors<T>(call)) return false;
  if (blocks < 0 || blocks > kMostBlocks || kMostBlocks % blocks || (across != 2 && across != 4)) {
    *refusal = "bn_act: a cluster has 1, 2, 4, 8 or 16 blocks, and its slice 2 or 4 vectors";
    return true;
  }
  const bool backward = call.grad_y;
  const int groups = kThreads / (across * kLines), width = across * kVectorLength<T>;
  const int channels = static_cast<int>(norm.channels), slices = (channels + width - 1) / width;
  const int64_t per_piece = (norm.rows + kPieces - 1) / kPieces;
  const int per_line = static_cast<int>((per_piece + kLines - 1) / kLines);
  const int all = kPieces / (blocks * groups) * per_line;
  const size_t sums = sizeof(Real) * Shared<Real>::reals(groups, width);
  const size_t most = most_shared_bytes(), of_a_row = size_t{16} * kThreads * (backward ? 2 : 1);
  if (most < sums) return false;
  const size_t room = (most - sums) / of_a_row;
  const int kept = room < static_cast<size_t>(all) ? static_cast<int>(room) : all;
  const ClusterShape shape{norm.rows, channels, blocks, across, per_line, kept};
  ClusterLaunch launch(dim3(slices * blocks), dim3(kThreads), blocks, sums + kept * of_a_row,
                       call.stream);
  const BnActMaps<T> maps(call);
  if (backward)
    *refusal = launch.run(bn_act_backward_cluster_kernel<T>, norm, shape, maps,
                          static_cast<Real*>(call.grad_beta), static_cast<Real*>(call.grad_gamma));
  else
    *refusal = launch.run(bn_act_cluster_kernel<T>, norm, shape, maps);
  return true;
}

}  // namespace

bool bn_act_in_clusters(int dtype, const BnActCall& call, const char** refusal) {
  bool ran = false;
  const char* unknown = dispatch(dtype, [&](auto zero) -> const char* {
    ran = run<decltype(zero)>(call, refusal);
    return nullptr;
  });
  if (unknown) *refusal = unknown;
  return ran || unknown;
}

}  // namespace fasthg

int fasthg_bn_act_clusters_cuda(int dtype, bool backward, int blocks, int device) {
  using namespace fasthg;
  const DeviceGuard guard(device);
  int count = 0;
  dispatch(dtype, [&](auto zero) -> const char* {
    using T = decltype(zero);
    ClusterLaunch launch(dim3(blocks), dim3(kThreads), blocks, most_shared_bytes(), nullptr);
    count = backward ? launch.active(bn_act_backward_cluster_kernel<T>)
                     : launch.active(bn_act_cluster_kernel<T>);
    return nullptr;
  });
  return count;
}
