#pragma once

// PRIVATE header of kvaq/cuda: threads that seal tiles while a program's main thread waits in a GPU layer.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "kvaq/base/attention_call.h"

namespace kvaq::cuda {

/// n threads (the caller is one of them) that run one function together, as a Team. A thread without work looks for some for two milliseconds, the
/// time between two layers of a prompt, and sleeps then. Thread-safety: one caller.
class HostTeam {
  public:
    explicit HostTeam(size_t n);
    HostTeam(const HostTeam&) = delete;
    HostTeam& operator=(const HostTeam&) = delete;
    ~HostTeam();
    /// Returns when every thread has returned from it. The function must not throw.
    void run(const std::function<void(Team&)>& function);

  private:
    class Member;
    void work(size_t index);
    void wait_for_all() noexcept;
    /// False: stop.
    [[nodiscard]] bool wait_for_round(uint64_t seen);

    size_t size_;
    const std::function<void(Team&)>* function_ = nullptr;
    std::atomic<uint64_t> round_{0};
    std::atomic<size_t> n_busy_{0}, n_arrived_{0};
    std::atomic<uint64_t> barrier_round_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> threads_;
};

}  // namespace kvaq::cuda
