#include "kvaq/cache/token_runs.h"

#include <algorithm>

namespace kvaq {
namespace {

using Run = TokenRuns::Run;

/// Calls visit(run) for the runs of the sequences before `sequence` and of itself before `run`.
template <typename Visit>
void for_runs_before(std::span<const TokenRuns> sequences, size_t sequence, size_t run, Visit visit) noexcept {
    for (size_t s = 0; s < sequence; ++s) {
        for (const Run& other : sequences[s].runs()) visit(other);
    }
    for (size_t i = 0; i < run; ++i) visit(sequences[sequence].runs()[i]);
}

}  // namespace

void TokenRuns::append(int32_t pos, uint64_t number) {
    if (!runs_.empty() && runs_.back().end() == pos && runs_.back().end_number() == number) {
        ++runs_.back().n;
    } else {
        runs_.push_back({.pos = pos, .n = 1, .number = number});
    }
}

/// Makes a run begin at `pos` if one goes across it.
void TokenRuns::split(int32_t pos) {
    const auto run =
        std::find_if(runs_.begin(), runs_.end(), [pos](const Run& r) { return r.pos < pos && r.end() > pos; });
    if (run == runs_.end()) return;
    const int32_t n_left = pos - run->pos;
    const Run right{.pos = pos, .n = run->n - n_left, .number = run->number + static_cast<uint64_t>(n_left)};
    run->n = n_left;
    runs_.insert(run + 1, right);
}

void TokenRuns::join() noexcept {
    for (size_t i = 1; i < runs_.size();) {
        if (runs_[i - 1].end() == runs_[i].pos && runs_[i - 1].end_number() == runs_[i].number) {
            runs_[i - 1].n += runs_[i].n;
            runs_.erase(runs_.begin() + static_cast<ptrdiff_t>(i));
        } else {
            ++i;
        }
    }
}

void TokenRuns::remove(int32_t from, int32_t to) {
    split(from);
    split(to);
    std::erase_if(runs_, [&](const Run& run) { return run.pos >= from && run.end() <= to; });
}

void TokenRuns::shift(int32_t from, int32_t to, int32_t delta) {
    split(from);
    split(to);
    for (Run& run : runs_) {
        if (run.pos >= from && run.end() <= to) run.pos += delta;
    }
    join();
}

bool TokenRuns::holds(uint64_t number) const noexcept {
    return std::any_of(runs_.begin(), runs_.end(),
                       [number](const Run& run) { return run.number <= number && number < run.end_number(); });
}

size_t count_tokens(std::span<const TokenRuns> sequences) noexcept {
    size_t n = 0;
    for (size_t s = 0; s < sequences.size(); ++s) {
        for (size_t i = 0; i < sequences[s].runs().size(); ++i) {
            const Run& run = sequences[s].runs()[i];
            for (uint64_t at = run.number;
                 at < run.end_number();) {  // from one number to the next that is counted, or is not
                uint64_t counted_to = at;
                uint64_t next = run.end_number();
                for_runs_before(sequences, s, i, [&](const Run& other) {
                    if (other.number <= at) {
                        counted_to = std::max(counted_to, other.end_number());
                    } else {
                        next = std::min(next, other.number);
                    }
                });
                if (counted_to > at) {
                    at = counted_to;
                } else {
                    n += static_cast<size_t>(next - at);
                    at = next;
                }
            }
        }
    }
    return n;
}

}  // namespace kvaq
