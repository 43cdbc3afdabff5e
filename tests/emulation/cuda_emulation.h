// A CUDA block on the host: lets g++ compile csrc/*_cuda.cu unchanged, so that kernels are tested
// where there is no GPU.
//
// Every CUDA thread is a fiber that runs until it waits for others: at __syncthreads for its block,
// at a shuffle or a tensor core instruction for its warp, at cluster_wait for its cluster. Shared
// memory is poisoned before each block. What finds a missing barrier is the order in which threads
// run, so there are three: natural (every warp in turn up to its next wait) and greedy (one warp as
// far as it can get, then the next, and so with the blocks of a cluster; first or last first).
// Asynchronous copies arrive at once in the natural order, and no earlier than they are waited for
// in the others. A kernel must give the same result in all of them.
//
// The blocks of a cluster run side by side and reach each other's shared memory. It is poisoned
// again when its block returns, and a write to it before its block starts or after it returned is
// an error. Other blocks run one after the other.
//
// Not modelled: the memory model, divergence within a warp.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __restrict__
#define __launch_bounds__(...)
#define FASTHG_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream), emulation::launch(grid, block, shared_bytes, [&] { kernel(__VA_ARGS__); }))
#define FASTHG_SHARED(name) \
  unsigned char* name = emulation::machine.shared_of(emulation::machine.rank)
#define threadIdx (emulation::machine.thread_index())
#define blockIdx (emulation::machine.block_index())

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulation {

enum Order : int { kNatural = 0, kGreedyForward = 1, kGreedyBackward = 2 };
enum Wait : int { kNothing, kWarp, kBlock, kCluster, kDone };
constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned char kPoison = 0x7f;  // huge numbers in every type, true as a flag

struct Copy {
  void* to;
  const void* from;
  int bytes;  // of 16; the others are zeros
  int group;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Wait wait;
  int vote;             // given at __syncthreads_or, then what all voted
  int arrivals, waits;  // at barriers of the cluster
  // What a lane offers its warp; two, since a lane may be one exchange ahead of another.
  uint32_t offered[2];
  struct {
    uint32_t a[4], b[2];
  } fragments[2];
  const unsigned char* matrix_row[2];
  int exchanges;
  std::vector<Copy> copies;  // on their way
  int groups;                // of copies, committed
};

struct Machine {
  dim3 block, block_size;  // block: the first of the cluster
  int cluster = 1;         // its blocks; the last launch's until the next
  // Of the blocks of a cluster, one after the other.
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0, shared_stride = 0;
  std::vector<Fiber> fibers;
  std::function<void()> kernel;
  ucontext_t scheduler;
  int current = 0, rank = 0, order = kNatural;
  int barriers_passed = 0;  // of the cluster, by all of its threads
  int launches = 0;         // since they were last asked for
  // The device: an H200, unless a test says otherwise.
  int capability = 9, largest_cluster = 16, multiprocessors = 132, most_shared = 227 * 1024;
  std::set<const void*> kernels_in_large_clusters;  // that may be
  // What a test leaves out to see the damage: the barrier on one line of a file whose path ends
  // with a name, and every wait for asynchronous copies.
  std::string file_left_out;
  int line_left_out = 0;
  bool copies_left_out = false;
  const char* problem = nullptr;

  int threads() const { return static_cast<int>(block_size.x); }
  dim3 thread_index() const { return dim3(current - rank * threads(), 0, 0); }
  dim3 block_index() const { return dim3(block.x + rank, block.y, block.z); }
  unsigned char* shared_of(int block_rank) { return shared + block_rank * shared_stride; }
  Fiber& self() { return fibers[current]; }

  void wait_for(Wait what) {
    self().wait = what;
    swapcontext(&self().context, &scheduler);
  }
  void resume(int thread) {
    current = thread;
    rank = thread / threads();
    swapcontext(&scheduler, &fibers[thread].context);
  }
};
inline Machine machine;

inline void fiber_main() {
  machine.kernel();
  machine.wait_for(kDone);
}

inline void start_fibers(int count) {
  machine.fibers.resize(count);
  for (Fiber& fiber : machine.fibers) {
    if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
    fiber.wait = kNothing;
    fiber.vote = fiber.arrivals = fiber.waits = fiber.exchanges = fiber.groups = 0;
    fiber.copies.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
}

// True if threads [begin, end) that still live all wait for `what` (and some live); sets them free.
// A shuffle names all lanes of its warp, so there a lane that has returned is an error.
inline bool release(int begin, int end, Wait what) {
  int waiting = 0, done = 0;
  for (int i = begin; i < end; ++i) {
    waiting += machine.fibers[i].wait == what;
    done += machine.fibers[i].wait == kDone;
  }
  if (!waiting || waiting + done < end - begin) return false;
  if (what == kWarp && done) {
    machine.problem = "emulation: a shuffle waits for a lane that has returned";
    return false;
  }
  for (int i = begin; i < end; ++i)
    if (machine.fibers[i].wait == what) machine.fibers[i].wait = kNothing;
  return true;
}

// Whether every thread of the cluster that still lives has arrived at so many barriers of it.
inline bool all_arrived(int barriers) {
  if (machine.barriers_passed >= barriers) return true;
  for (auto fiber = machine.fibers.rbegin(); fiber != machine.fibers.rend(); ++fiber)
    if (fiber->wait != kDone && fiber->arrivals < barriers) return false;
  machine.barriers_passed = barriers;
  return true;
}

inline bool run_warp(int begin, int end) {
  bool progress = false;
  for (int i = begin; i < end; ++i)
    if (machine.fibers[i].wait == kNothing) {
      machine.resume(i);
      progress = true;
    }
  return release(begin, end, kWarp) || progress;
}

// Whether every byte of a block's shared memory from `begin` on is as it was before the block.
inline bool poisoned(int rank, size_t begin) {
  const unsigned char* shared = machine.shared_of(rank);
  return std::all_of(shared + begin, shared + machine.shared_stride,
                     [](unsigned char byte) { return byte == kPoison; });
}

inline void poison(int rank) {
  std::memset(machine.shared_of(rank), kPoison, machine.shared_stride);
}

// Runs a block of the cluster, in the natural order each of its warps once, in the others until it
// waits for the cluster or has returned. Returns whether any of its threads ran.
inline bool run_block(int rank) {
  const int threads = machine.threads(), warps = (threads + kWarpSize - 1) / kWarpSize;
  const int first = rank * threads;
  const auto begin = machine.fibers.begin() + first, end = begin + threads;
  bool ran = false, progress;
  do {
    progress = false;
    for (int k = 0; k < warps; ++k) {
      const int warp = machine.order == kGreedyBackward ? warps - 1 - k : k;
      const int from = first + warp * kWarpSize, to = std::min(from + kWarpSize, first + threads);
      while (run_warp(from, to)) {
        progress = true;
        if (machine.order == kNatural) break;
      }
    }
    int votes = 0;
    for (auto fiber = begin; fiber != end; ++fiber) votes |= fiber->wait == kBlock && fiber->vote;
    if (release(first, first + threads, kBlock)) {
      for (auto fiber = begin; fiber != end; ++fiber) fiber->vote = votes;
      progress = true;
    }
    ran |= progress;
  } while (progress && machine.order != kNatural && !machine.problem);
  return ran;
}

// Sets free the threads whose barrier of the cluster all others have arrived at.
inline bool release_cluster() {
  bool freed = false;
  for (Fiber& fiber : machine.fibers)
    if (fiber.wait == kCluster && all_arrived(fiber.arrivals)) {
      fiber.wait = kNothing;
      freed = true;
    }
  return freed;
}

inline void run_cluster() {
  const int blocks = machine.cluster, threads = machine.threads();
  enum State { kWaits, kRuns, kReturned };
  std::vector<State> states(blocks, kWaits);
  start_fibers(blocks * threads);
  machine.barriers_passed = 0;
  for (int rank = 0; rank < blocks; ++rank) poison(rank);
  for (int returned = 0; returned < blocks && !machine.problem;) {
    bool progress = false;
    for (int k = 0; k < blocks && !machine.problem; ++k) {
      const int rank = machine.order == kGreedyBackward ? blocks - 1 - k : k;
      if (states[rank] == kReturned) continue;
      if (states[rank] == kWaits && !poisoned(rank, 0))
        machine.problem = "emulation: a write to the shared memory of a block before it started";
      states[rank] = kRuns;
      progress |= run_block(rank);
      const auto first = machine.fibers.begin() + rank * threads;
      if (std::all_of(first, first + threads, [](const Fiber& f) { return f.wait == kDone; })) {
        if (!poisoned(rank, machine.shared_bytes))
          machine.problem = "emulation: a write beyond the shared memory";
        poison(rank);
        states[rank] = kReturned;
        ++returned;
      }
    }
    if (!release_cluster() && !progress && !machine.problem && returned < blocks)
      machine.problem = "emulation: threads wait at different barriers";
  }
  for (int rank = 0; rank < blocks && !machine.problem; ++rank)
    if (!poisoned(rank, 0))
      machine.problem = "emulation: a write to the shared memory of a block that has returned";
}

// cluster: blocks of one, neighbours in x.
inline void launch(dim3 grid, dim3 block_size, size_t shared_bytes, std::function<void()> kernel,
                   int cluster = 1) {
  machine.problem = nullptr;
  ++machine.launches;
  machine.block_size = block_size;
  machine.kernel = std::move(kernel);
  machine.cluster = cluster;
  if (grid.x % cluster) machine.problem = "emulation: the blocks do not fill the last cluster";
  if (cluster > 1 && block_size.x % kWarpSize)
    machine.problem = "emulation: a block of a cluster is no multiple of a warp";
  // The bytes after those that the kernel asked for must stay poisoned.
  machine.shared_bytes = shared_bytes;
  machine.shared_stride = (shared_bytes + 31) / 16 * 16;
  std::vector<uint64_t> shared(machine.shared_stride * cluster / 8 + 1);
  machine.shared = reinterpret_cast<unsigned char*>(shared.data());
  machine.shared += reinterpret_cast<uintptr_t>(machine.shared) % 16;
  for (unsigned i = 0; i < grid.x * grid.y * grid.z && !machine.problem; i += cluster) {
    machine.block = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    run_cluster();
  }
}

}  // namespace emulation

inline const dim3& blockDim = emulation::machine.block_size;

namespace emulation {

inline void arrive(const Copy& copy) {
  std::memset(copy.to, 0, 16);
  std::memcpy(copy.to, copy.from, copy.bytes);
}

inline void copy_async(void* to, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    machine.problem = "emulation: an asynchronous copy that is not aligned to 16 bytes";
  const Copy copy{to, from, bytes, machine.self().groups};
  if (machine.order == kNatural)
    arrive(copy);
  else
    machine.self().copies.push_back(copy);
}

inline void commit_copies() {
  ++machine.self().groups;
}

inline void wait_for_copies(int pending) {
  if (machine.copies_left_out) return;
  std::vector<Copy> late;
  for (const Copy& copy : machine.self().copies)
    if (copy.group + pending < machine.self().groups)
      arrive(copy);
    else
      late.push_back(copy);
  machine.self().copies.swap(late);
}

}  // namespace emulation

inline int __syncthreads_or(int vote) {
  emulation::machine.self().vote = vote;
  emulation::machine.wait_for(emulation::kBlock);
  return emulation::machine.self().vote;
}

namespace emulation {

inline bool left_out(const char* file, int line) {
  if (line != machine.line_left_out) return false;
  const std::string path(file), &name = machine.file_left_out;
  return path.size() >= name.size() && !path.compare(path.size() - name.size(), name.size(), name);
}

inline void barrier(const char* file, int line) {
  if (!left_out(file, line)) __syncthreads_or(0);
}

inline void arrive_in_cluster() {
  ++machine.self().arrivals;
}

// A wait that is left out counts, as if all had arrived.
inline void wait_for_cluster(const char* file, int line) {
  Fiber& self = machine.self();
  if (++self.waits != self.arrivals)
    machine.problem = "emulation: a barrier of the cluster needs one arrival before each wait";
  if (!left_out(file, line) && !all_arrived(self.arrivals)) machine.wait_for(kCluster);
}

}  // namespace emulation

#define cluster_arrive() emulation::arrive_in_cluster()
#define cluster_wait() emulation::wait_for_cluster(__FILE__, __LINE__)
#define cluster_sync() \
  (emulation::arrive_in_cluster(), emulation::wait_for_cluster(__FILE__, __LINE__))
#define __syncthreads() emulation::barrier(__FILE__, __LINE__)

inline unsigned __shfl_xor_sync(unsigned, unsigned value, int mask) {
  emulation::Fiber& self = emulation::machine.self();
  const int turn = self.exchanges++ % 2, partner = emulation::machine.current ^ mask;
  self.offered[turn] = value;
  emulation::machine.wait_for(emulation::kWarp);
  return emulation::machine.fibers[partner].offered[turn];
}

inline int min(int a, int b) {
  return a < b ? a : b;
}
inline int max(int a, int b) {
  return a > b ? a : b;
}

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? 0x7fff : (word + 0x7fffu + (word >> 16 & 1u)) >> 16;  // to nearest, ties to even
  }
  explicit operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};
using __half = _Float16;

namespace emulation {

template <typename T>
float half_of(uint32_t pair, int which) {
  const auto bits = static_cast<uint16_t>(which ? pair >> 16 : pair);
  T value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

// csrc/mma.cuh says which lane holds what.
template <typename T>
void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4]) {
  Fiber& self = machine.self();
  const int turn = self.exchanges++ % 2, lane = machine.current % kWarpSize;
  std::copy(a, a + 4, self.fragments[turn].a);
  std::copy(b, b + 2, self.fragments[turn].b);
  machine.wait_for(kWarp);
  const Fiber* warp = &machine.fibers[machine.current - lane];
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      const auto& row_lane = warp[row % 8 * 4 + k % 8 / 2].fragments[turn];
      const auto& column_lane = warp[column * 4 + k % 8 / 2].fragments[turn];
      sum += half_of<T>(row_lane.a[row / 8 + k / 8 * 2], k % 2) *
             half_of<T>(column_lane.b[k / 8], k % 2);
    }
    c[i] += sum;
  }
}

inline void load_matrices(const void* row, bool transposed, uint32_t (&pieces)[4]) {
  if (reinterpret_cast<uintptr_t>(row) % 16)
    machine.problem = "emulation: a row of a matrix does not start at a multiple of 16 bytes";
  Fiber& self = machine.self();
  const int turn = self.exchanges++ % 2, lane = machine.current % kWarpSize;
  self.matrix_row[turn] = static_cast<const unsigned char*>(row);
  machine.wait_for(kWarp);
  const Fiber* warp = &machine.fibers[machine.current - lane];
  for (int i = 0; i < 4; ++i)
    for (int half = 0; half < 2; ++half) {
      const int along = lane % 4 * 2 + half, across = lane / 4;
      const int from_row = transposed ? along : across, column = transposed ? across : along;
      uint16_t bits;
      std::memcpy(&bits, warp[8 * i + from_row].matrix_row[turn] + 2 * column, 2);
      pieces[i] = half ? pieces[i] | static_cast<uint32_t>(bits) << 16 : bits;
    }
}

}  // namespace emulation

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributeNonPortableClusterSizeAllowed
};
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount
};
struct cudaFuncAttributes {
  int ptxVersion;
};
using cudaStream_t = void*;
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaGetLastError() {
  return emulation::machine.problem ? 1 : cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) {
  return emulation::machine.problem;
}
inline cudaError_t cudaGetDevice(int* device) {
  return *device = 0;
}
inline cudaError_t cudaSetDevice(int) {
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  return *count = 0;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emulation::Machine& machine = emulation::machine;
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? machine.capability
           : attribute == cudaDevAttrMultiProcessorCount  ? machine.multiprocessors
                                                          : machine.most_shared;
  return cudaSuccess;
}
// As if registers never were the limit.
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int threads,
                                                          size_t bytes) {
  constexpr int reserved = 1024;  // bytes that each block takes besides its own
  const int by_shared =
      (emulation::machine.most_shared + reserved) / (static_cast<int>(bytes) + reserved);
  *blocks = std::min(by_shared, 2048 / threads);
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->ptxVersion = 10 * emulation::machine.capability;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize)
    return value > emulation::machine.most_shared;
  if (value)
    emulation::machine.kernels_in_large_clusters.insert(reinterpret_cast<const void*>(kernel));
  return cudaSuccess;
}

namespace emulation {

// Of a launch, or 0 for what the device refuses.
template <typename Kernel>
int cluster_size(Kernel* kernel, const cudaLaunchConfig_t& config) {
  const int size = config.numAttrs ? static_cast<int>(config.attrs->val.clusterDim.x) : 1;
  const bool large = machine.kernels_in_large_clusters.count(reinterpret_cast<const void*>(kernel));
  const bool refused = machine.capability < 9 || size > (large ? machine.largest_cluster : 8) ||
                       config.dynamicSmemBytes > static_cast<size_t>(machine.most_shared);
  return refused ? 0 : size;
}

}  // namespace emulation

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* count, Kernel* kernel,
                                           const cudaLaunchConfig_t* config) {
  const int size = emulation::cluster_size(kernel, *config);
  *count = size ? emulation::machine.multiprocessors / size : 0;
  return size ? cudaSuccess : 1;
}
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const int size = emulation::cluster_size(kernel, *config);
  if (size)
    emulation::launch(
        config->gridDim, config->blockDim, config->dynamicSmemBytes, [&] { kernel(arguments...); },
        size);
  else
    emulation::machine.problem = "emulation: the device refuses a cluster of this size";
  return cudaGetLastError();
}

// Switches of the tests. Weak, because every kernel's file has them.
#define EMULATION_EXPORT extern "C" __attribute__((weak, visibility("default")))

EMULATION_EXPORT void emulation_order(int order) {
  emulation::machine.order = order;
}

EMULATION_EXPORT void emulation_leave_out(const char* file, int line, bool copies) {
  emulation::machine.file_left_out = file;
  emulation::machine.line_left_out = line;
  emulation::machine.copies_left_out = copies;
}

// Kernels launched since the last call.
EMULATION_EXPORT int emulation_launches() {
  return std::exchange(emulation::machine.launches, 0);
}

// The blocks of a cluster of the last launch.
EMULATION_EXPORT int emulation_cluster() {
  return emulation::machine.cluster;
}

// The blocks of the last launch, whose grid had one dimension.
EMULATION_EXPORT int emulation_blocks() {
  return static_cast<int>(emulation::machine.block.x) + emulation::machine.cluster;
}

// A device with another number of multiprocessors than an H200.
EMULATION_EXPORT void emulation_multiprocessors(int count) {
  emulation::machine.multiprocessors = count;
}

// Another device than an H200: its compute capability's first number, the blocks of its largest
// cluster, and the bytes of shared memory that a block gets.
EMULATION_EXPORT void emulation_device(int capability, int largest_cluster, int most_shared) {
  emulation::machine.capability = capability;
  emulation::machine.largest_cluster = largest_cluster;
  emulation::machine.most_shared = most_shared;
}
