// A CUDA block on the host: lets g++ compile csrc/*_cuda.cu unchanged, so that kernels are tested
// where there is no GPU.
//
// Every CUDA thread is a fiber that runs until it waits for others: at __syncthreads for its block,
// at a shuffle or a tensor core instruction for its warp. Shared memory is poisoned before each
// block. What finds a missing barrier is the order in which threads run, so there are three: natural
// (every warp in turn up to its next wait) and greedy (one warp as far as it can get, then the next;
// first or last warp first). Asynchronous copies arrive at once in the natural order, and no earlier
// than they are waited for in the others. A kernel must give the same result in all of them.
//
// Not modelled: the memory model, divergence within a warp, blocks running side by side.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
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
#define FASTHG_SHARED(name) unsigned char* name = emulation::machine.shared
#define threadIdx (emulation::machine.thread_index())
#define blockIdx (emulation::machine.block)
#define blockDim (emulation::machine.block_size)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulation {

enum Order : int { kNatural = 0, kGreedyForward = 1, kGreedyBackward = 2 };
enum Wait : int { kNothing, kWarp, kBlock, kDone };
constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned char kPoison = 0x7f;  // huge numbers in every type, true as a flag

struct Copy {
  void* to;
  const void* from;
  bool in_bounds;  // else zeros arrive
  int group;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Wait wait;
  int vote;             // given at __syncthreads_or
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
  dim3 block, block_size;
  unsigned char* shared = nullptr;
  std::vector<Fiber> fibers;
  std::function<void()> kernel;
  ucontext_t scheduler;
  int current = 0, order = kNatural, any_vote = 0;
  int launches = 0;  // since they were last asked for
  // What a test leaves out to see the damage: the barrier on one line of a file whose path ends
  // with a name, and every wait for asynchronous copies.
  std::string file_left_out;
  int line_left_out = 0;
  bool copies_left_out = false;
  const char* problem = nullptr;

  dim3 thread_index() const { return dim3(current, 0, 0); }
  Fiber& self() { return fibers[current]; }

  void wait_for(Wait what) {
    self().wait = what;
    swapcontext(&self().context, &scheduler);
  }
  void resume(int thread) {
    current = thread;
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
    fiber.vote = fiber.exchanges = fiber.groups = 0;
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

inline bool run_warp(int begin, int end) {
  bool progress = false;
  for (int i = begin; i < end; ++i)
    if (machine.fibers[i].wait == kNothing) {
      machine.resume(i);
      progress = true;
    }
  return release(begin, end, kWarp) || progress;
}

inline void run_block() {
  const int threads = machine.block_size.x, warps = (threads + kWarpSize - 1) / kWarpSize;
  start_fibers(threads);
  while (!machine.problem) {
    bool progress = false;
    for (int k = 0; k < warps; ++k) {
      const int warp = machine.order == kGreedyBackward ? warps - 1 - k : k;
      const int begin = warp * kWarpSize, end = std::min(begin + kWarpSize, threads);
      while (run_warp(begin, end)) {
        progress = true;
        if (machine.order == kNatural) break;
      }
    }
    int votes = 0, done = 0;
    for (const Fiber& fiber : machine.fibers) {
      votes |= fiber.wait == kBlock && fiber.vote;
      done += fiber.wait == kDone;
    }
    if (done == threads) return;
    if (release(0, threads, kBlock))
      machine.any_vote = votes;
    else if (!progress)
      machine.problem = "emulation: threads wait at different barriers";
  }
}

inline void launch(dim3 grid, dim3 block_size, size_t shared_bytes, std::function<void()> kernel) {
  machine.problem = nullptr;
  ++machine.launches;
  machine.block_size = block_size;
  machine.kernel = std::move(kernel);
  // The bytes after those that the kernel asked for must stay poisoned.
  std::vector<uint64_t> shared(shared_bytes / 8 + 3);
  machine.shared = reinterpret_cast<unsigned char*>(shared.data());
  machine.shared += reinterpret_cast<uintptr_t>(machine.shared) % 16;
  for (unsigned i = 0; i < grid.x * grid.y * grid.z && !machine.problem; ++i) {
    machine.block = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    std::memset(shared.data(), kPoison, shared.size() * 8);
    run_block();
    const unsigned char* last = reinterpret_cast<unsigned char*>(shared.data() + shared.size());
    for (const unsigned char* p = machine.shared + shared_bytes; p < last; ++p)
      if (*p != kPoison) machine.problem = "emulation: a write beyond the shared memory";
  }
}

}  // namespace emulation

namespace emulation {

inline void arrive(const Copy& copy) {
  if (copy.in_bounds)
    std::memcpy(copy.to, copy.from, 16);
  else
    std::memset(copy.to, 0, 16);
}

inline void copy_async(void* to, const void* from, bool in_bounds) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    machine.problem = "emulation: an asynchronous copy that is not aligned to 16 bytes";
  const Copy copy{to, from, in_bounds, machine.self().groups};
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
  return emulation::machine.any_vote;
}

namespace emulation {

inline void barrier(const char* file, int line) {
  if (line == machine.line_left_out) {
    const std::string path(file), &name = machine.file_left_out;
    if (path.size() >= name.size() &&
        !path.compare(path.size() - name.size(), name.size(), name))
      return;
  }
  __syncthreads_or(0);
}

}  // namespace emulation

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
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
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
// A block of an H100 gets at most 227 KB.
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return bytes > 227 * 1024;
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
