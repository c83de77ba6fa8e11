// examples/llama_cpp_python.py: the unmodified Python package llama-cpp-python on the drop-in, through the folder whose
// libllama.so is libkvaq-llama.so.
#include <gtest/gtest.h>

#include <regex>

#include "tests/subprocess.h"

namespace kvaq {
namespace {

const std::string kRoot = std::string(KVAQ_DATA_DIR) + "/..";

class LlamaCppPython : public testing::Test {
  protected:
    static void SetUpTestSuite() {
        fetch_ = run_process({kRoot + "/scripts/fetch_llama_cpp_python.sh"}, {.env = {}, .timeout_seconds = 300});
    }
    void SetUp() override { ASSERT_EQ(fetch_.exit_code, 0) << fetch_.err; }

    static ProcessResult example(const std::string& prompt, const std::string& plan,
                                 const std::string& lib_dir = KVAQ_PYTHON_LIB_DIR) {
        std::vector<std::string> command = {kRoot + "/.deps/venv/bin/python", kRoot + "/examples/llama_cpp_python.py",
                                            KVAQ_MODEL, prompt};
        if (!plan.empty()) command.push_back(plan);
        // Passive: on a busy machine libgomp's spinning threads wait for each other for most of a minute.
        return run_process(command, {.env = {{"LLAMA_CPP_LIB_PATH", lib_dir}, {"OMP_WAIT_POLICY", "passive"}},
                                     .timeout_seconds = 200});
    }

    /// What the example printed before its last line.
    static std::string text_of(const ProcessResult& result) {
        return result.out.substr(0, result.out.rfind("[cache: "));
    }

    static size_t cache_bytes_of(const ProcessResult& result) {
        std::smatch found;
        if (std::regex_search(result.out, found, std::regex("\\[cache: ([0-9]+) bytes\\]\n$")))
            return std::stoull(found[1]);
        ADD_FAILURE() << result.out << result.err;
        return 0;
    }

  private:
    static inline ProcessResult fetch_;
};

// Counting: no greedy choice is near a tie. The best token leads by 1.3 nats or more, and the f16 plan moves that lead
// by at most 0.33 nats (SmolLM2-135M, AVX-512), so rounding does not part the texts. Prompt and answer fill two tiles.
const std::string kCounting = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,";

TEST_F(LlamaCppPython, IsServedByThePlan) {
    const ProcessResult packed = example(kCounting, "k4v4-rot");
    ASSERT_EQ(packed.exit_code, 0) << packed.err;
    EXPECT_EQ(lines_starting(packed.err, "kvaq: plan k4v4-rot").size(), 1U) << packed.err;
    EXPECT_EQ(lines_starting(packed.err, "kvaq: at exit: ").size(), 1U) << packed.err;
    EXPECT_TRUE(lines_starting(packed.err, "kvaq: error").empty()) << packed.err;
    EXPECT_NE(text_of(packed).find(" 13, 14, 15"), std::string::npos) << packed.out;

    const ProcessResult f16 = example(kCounting, "f16");
    ASSERT_EQ(f16.exit_code, 0) << f16.err;
    EXPECT_GT(cache_bytes_of(packed), 0U);
    EXPECT_LT(cache_bytes_of(packed), cache_bytes_of(f16)) << "no tile was packed";
}

TEST_F(LlamaCppPython, TheF16PlanGivesTheTextOfPlainLlamaCpp) {
    const ProcessResult plain = example(kCounting, "");
    ASSERT_EQ(plain.exit_code, 0) << plain.err;
    EXPECT_TRUE(lines_starting(plain.err, "kvaq").empty()) << "without a plan the library is not there: " << plain.err;
    EXPECT_EQ(cache_bytes_of(plain), 0U);
    EXPECT_NE(text_of(plain).find(" 13, 14, 15"), std::string::npos) << plain.out;

    const ProcessResult served = example(kCounting, "f16");
    ASSERT_EQ(served.exit_code, 0) << served.err;
    EXPECT_EQ(lines_starting(served.err, "kvaq: plan f16").size(), 1U) << served.err;
    EXPECT_GT(cache_bytes_of(served), 0U);
    EXPECT_EQ(text_of(served), text_of(plain));
}

TEST_F(LlamaCppPython, ABadPlanIsOneClearErrorAndExitCodeOne) {
    const ProcessResult result = example("Hello", "nonsense");
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_EQ(result.out, "");
    ASSERT_EQ(lines_starting(result.err, "kvaq: error: ").size(), 1U) << result.err;
    EXPECT_NE(result.err.find("nonsense"), std::string::npos) << result.err;
    EXPECT_EQ(result.err.find("Traceback"), std::string::npos) << result.err;
}

TEST_F(LlamaCppPython, AMissingLibraryFolderIsRefusedInOneLine) {
    const ProcessResult result = example("Hello", "k4v4-rot", "/no/such/folder");
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_EQ(result.out, "");
    EXPECT_EQ(result.err.rfind("kvaq: error: ", 0), 0U) << result.err;
    EXPECT_EQ(result.err.find('\n'), result.err.size() - 1) << "more than one line: " << result.err;
    EXPECT_NE(result.err.find("/no/such/folder"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace kvaq
