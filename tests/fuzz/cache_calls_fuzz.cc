// Any sequence of calls of the serving cache's interface gives what plain vectors in double give (kvaq/attention/reference.h), and a call
// that is refused changes nothing.
#include <cmath>

#include "kvaq/attention/reference.h"
#include "kvaq/base/error.h"
#include "kvaq/plan/budget.h"
#include "tests/fuzz/fuzz_cache.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvaq::fuzz {
namespace {

/// Said at the end of the program.
struct Count {
    uint64_t n_calls = 0;
    ~Count() { std::printf("%llu operations\n", static_cast<unsigned long long>(n_calls)); }
};
Count& count() {
    static Count count;
    return count;
}

class Game {
  public:
    explicit Game(Choices& choices)
        : choices_(choices),
          mode_(kModes[static_cast<size_t>(choices.below(kModes.size()))]),
          sliding_(kSlidingWindows[static_cast<size_t>(choices.below(kSlidingWindows.size()))]),
          model_(tiny_model(sliding_)),
          plan_(plan_of(kPlans[static_cast<size_t>(choices.below(kPlans.size()))], model_)),
          cache_(make_kv_cache(plan_, {.n_seq_max = kSequences,
                                       .n_ctx = kContext,
                                       .max_batch_tokens = kBatch,
                                       .keep_sliding = choices.below(4) == 0})),
          reference_(make_reference_handler(plan_, kSequences, 1000000)) {}

    void play() {
        for (int n = 0; !choices_.empty() && n < 400; ++n) {
            move();
            check();
            ++count().n_calls;
        }
    }

  private:
    [[nodiscard]] int32_t next(int32_t seq) const { return cache_->seq_pos_max(seq) + 1; }
    [[nodiscard]] std::vector<std::byte> saved(int32_t seq) const { return cache_->save_sequence(seq); }

    void check() const {
        size_t longest = 0;
        for (int32_t s = 0; s < kSequences; ++s) {
            FUZZ_CHECK(cache_->seq_pos_max(s) == reference_->seq_pos_max(s));
            FUZZ_CHECK(sliding_ > 0 || cache_->seq_pos_min(s) == reference_->seq_pos_min(s));
            longest = std::max(longest, static_cast<size_t>(next(s)));
        }
        const CacheUse use = cache_->use();
        FUZZ_CHECK(use.held() <= use.allocated && use.n_tokens <= static_cast<size_t>(kContext));
        FUZZ_CHECK(use.n_tokens == ledger_.size());
        FUZZ_CHECK(use.n_tiles + use.n_tiles_evicted <= use.n_tiles_sealed);
        if (use.n_sequences == 0) FUZZ_CHECK(use.held() == use.tables && use.shared == 0 && use.n_tokens == 0);
    }

    /// Both do it, or the cache refuses for what its sliding windows gave up and has not changed.
    template <typename Edit, typename Count>
    void edit(int32_t seq, Edit both, Count count) {
        const std::vector<std::byte> before = saved(seq);
        if (both(*cache_)) {
            FUZZ_CHECK(both(*reference_));
            count();
        } else {
            FUZZ_CHECK(sliding_ > 0 && before == saved(seq));
        }
    }
    void remove(int32_t seq, int32_t from, int32_t to) {
        edit(
            seq, [&](AttentionHandler& h) { return h.seq_rm(seq, from, to); }, [&] { ledger_.seq_rm(seq, from, to); });
    }
    void copy(int32_t src, int32_t dst, int32_t from, int32_t to) {
        edit(
            dst, [&](AttentionHandler& h) { return h.seq_cp(src, dst, from, to); },
            [&] { ledger_.seq_cp(src, dst, from, to); });
    }
    /// Which is never refused.
    void empty(int32_t seq) {
        FUZZ_CHECK(cache_->seq_rm(seq, -1, -1) && reference_->seq_rm(seq, -1, -1));
        ledger_.seq_rm(seq, -1, -1);
    }

    void decode(std::vector<TestToken> tokens) {
        std::vector<std::vector<std::byte>> before;
        for (int32_t s = 0; s < kSequences; ++s) before.push_back(saved(s));
        const std::vector<float> got = run(*cache_, model_, tokens);
        if (got.empty()) {  // no room
            for (int32_t s = 0; s < kSequences; ++s) FUZZ_CHECK(before[static_cast<size_t>(s)] == saved(s));
            return;
        }
        ledger_.add(tokens);
        const std::vector<float> wanted = run(*reference_, model_, tokens);
        const double most = tolerance_of(mode_);
        for (size_t i = 0; i < got.size(); ++i) {
            if (!(std::fabs(static_cast<double>(got[i]) - static_cast<double>(wanted[i])) <= most)) {
                std::fprintf(stderr, "%s, output %zu: %g, reference %g\n", plan_.name.c_str(), i,
                             static_cast<double>(got[i]), static_cast<double>(wanted[i]));
                FUZZ_CHECK(false);
            }
        }
    }

    void move() {
        const ForcedMode forced(mode_);
        const int32_t seq = choices_.below(kSequences);
        const int32_t n = next(seq);
        const auto salt = static_cast<uint32_t>(++n_moves_);
        switch (choices_.below(16)) {
            case 0: {  // shorten
                const int32_t from =
                    choices_.below(2) == 0 ? choices_.below(n + 1) : std::max(0, n - choices_.below(70));
                remove(seq, from, -1);
                break;
            }
            case 1: {  // take out a range, leave the hole
                const int32_t from = choices_.below(n + 1);
                const int32_t to = from + choices_.below(std::max(1, n - from) + 20);
                remove(seq, from, to);
                break;
            }
            case 2: {  // copy
                const int32_t dst = choices_.below(kSequences);
                const int32_t to = choices_.below(3) == 0 ? choices_.below(n + 1) : -1;
                const int32_t from = choices_.below(4) == 0 ? choices_.below(n + 1) : -1;
                if (sliding_ > 0 && from > 0) break;  // whether that is refused depends on what was freed in front
                if (dst != seq) empty(dst);
                copy(seq, dst, from, to);
                break;
            }
            case 3: {  // a token that belongs to two sequences with the same history
                const int32_t dst = (seq + 1) % kSequences;
                empty(dst);
                FUZZ_CHECK(cache_->seq_cp(seq, dst, -1, -1) && reference_->seq_cp(seq, dst, -1, -1));
                ledger_.seq_cp(seq, dst, -1, -1);
                std::vector<TestToken> tokens;
                for (int32_t i = 0; i < 1 + choices_.below(30); ++i)
                    tokens.push_back({n + i, {std::min(seq, dst), std::max(seq, dst)}, salt});
                decode(std::move(tokens));
                break;
            }
            case 4:
                if (choices_.below(4) == 0) {
                    cache_->seq_keep(seq);
                    reference_->seq_keep(seq);
                    ledger_.seq_keep(seq);
                } else if (choices_.below(8) == 0) {
                    cache_->clear();
                    reference_->clear();
                    ledger_.clear();
                }
                break;
            case 5:  // context shift
            case 6: {
                if (n < 8 || sliding_ > 0) break;
                const int32_t keep = choices_.below(n / 4 + 1);
                const int32_t discard = 1 + choices_.below((n - keep) / 2);
                remove(seq, keep, keep + discard);
                edit(
                    seq, [&](AttentionHandler& h) { return h.seq_add(seq, keep + discard, -1, -discard); },
                    [&] { ledger_.seq_add(seq, keep + discard, -1, -discard); });
                break;
            }
            case 7: {  // a batch that fails
                const std::vector<std::byte> before = saved(seq);
                if (!run(*cache_, model_, text(seq, n, 1 + choices_.below(80), salt), false).empty())
                    settle_reference(*reference_, -1);
                FUZZ_CHECK(before == saved(seq));
                break;
            }
            case 8: {  // saved, lost, restored, into this sequence or another
                const std::vector<std::byte> bytes = saved(seq);
                FUZZ_CHECK(bytes.size() == cache_->sequence_bytes(seq));
                const int32_t dst = choices_.below(kSequences);
                if (bytes.empty()) break;
                if (choices_.below(2) == 0) empty(dst);
                const std::vector<std::byte> before = saved(dst);
                if (seq == dst && next(seq) == 0) break;
                try {
                    cache_->load_sequence(dst, bytes);
                } catch (const Error& error) {
                    FUZZ_CHECK(error.code() == ErrorCode::kOutOfMemory && before == saved(dst));
                    break;
                }
                FUZZ_CHECK(bytes == saved(dst));
                ledger_.load(seq, dst);
                if (seq != dst) FUZZ_CHECK(reference_->seq_rm(dst, -1, -1) && reference_->seq_cp(seq, dst, -1, -1));
                settle_reference(*reference_, dst);
                break;
            }
            case 9: {  // does it fit
                const std::vector<TestToken> tokens = text(seq, n, 1 + choices_.below(300), salt);
                std::vector<BatchToken> batch;
                for (const TestToken& token : tokens) batch.push_back({.pos = token.pos, .seq_ids = token.seq_ids});
                const std::vector<std::byte> before = saved(seq);
                const bool fits = cache_->fits(batch);
                FUZZ_CHECK(before == saved(seq));
                if (tokens.size() > static_cast<size_t>(kBatch)) break;
                FUZZ_CHECK(fits == cache_->begin(batch));
                cache_->rollback();
                if (fits) settle_reference(*reference_, -1);
                break;
            }
            default: {
                std::vector<TestToken> tokens =
                    text(seq, n, choices_.below(3) == 0 ? 1 + choices_.below(60) : 1 + choices_.below(3), salt);
                const int32_t other = choices_.below(kSequences);
                if (other != seq) {
                    const std::vector<TestToken> more = text(other, next(other), 1 + choices_.below(40), salt + 1000);
                    tokens.insert(tokens.end(), more.begin(), more.end());
                }
                decode(std::move(tokens));
            }
        }
    }

    Choices& choices_;
    AttentionMode mode_;
    int32_t sliding_;
    ModelShape model_;
    Plan plan_;
    std::unique_ptr<KvCache> cache_;
    std::unique_ptr<AttentionHandler> reference_;
    TokenLedger ledger_{kSequences};
    int n_moves_ = 0;
};

}  // namespace
}  // namespace kvaq::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    kvaq::fuzz::Choices choices({data, size});
    kvaq::fuzz::Game(choices).play();
    return 0;
}
