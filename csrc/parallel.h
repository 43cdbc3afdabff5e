// Threads over the items of a batch, for the CPU launchers.
//
// Plain std::thread, started for each call: an OpenMP runtime of our own would keep a second pool
// beside torch's, whose threads spin for the same cores, and GNU's does not survive fork(), which
// data-loader workers use. Starting a thread costs about 20 us, so small work stays on the caller.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace fasthg {

constexpr int64_t kElementsPerThread = 1 << 16;

inline int worker_count(int64_t items, int64_t elements_per_item, int threads) {
  const int64_t useful = items * elements_per_item / kElementsPerThread;
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({useful, items, threads})));
}

// Calls body(worker, begin, end) on `workers` contiguous shares of [0, items). Every item is
// computed by the same instructions whatever the number of workers. body must not throw.
template <typename Body>
void parallel_for(int64_t items, int workers, const Body& body) {
  std::vector<std::thread> pool;
  pool.reserve(workers);
  int64_t begin = items / workers;  // the first share is the caller's
  for (int worker = 1; worker < workers; ++worker) {
    const int64_t end = items * (worker + 1) / workers;
    try {
      pool.emplace_back([&body, worker, begin, end] { body(worker, begin, end); });
    } catch (const std::system_error&) {
      body(worker, begin, end);  // no more threads to be had from the system
    }
    begin = end;
  }
  body(0, 0, items / workers);
  for (std::thread& thread : pool) thread.join();
}

}  // namespace fasthg
