// kvaq eval --task as a user meets it.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/subprocess.h"

namespace kvaq {
namespace {

const std::string kData = KVAQ_DATA_DIR;

ProcessResult eval(std::vector<std::string> args) {
    args.insert(args.begin(), {KVAQ_CLI, "eval", "-m", KVAQ_MODEL});
    return run_process(args, {.env = {}, .timeout_seconds = 300});
}

TEST(EvalTask, RefusesFlagsByNameInOneLine) {
    const auto refuses = [](const std::vector<std::string>& args, const std::vector<std::string>& things) {
        const ProcessResult result = eval(args);
        SCOPED_TRACE(result.err);
        EXPECT_EQ(result.exit_code, 1);
        EXPECT_EQ(result.out, "");
        EXPECT_EQ(lines_starting(result.err, "").size(), 1U);
        for (const std::string& thing : things) EXPECT_NE(result.err.find(thing), std::string::npos) << thing;
    };
    refuses({}, {"-f TEXT", "--task"});
    refuses({"--task", "chess"}, {"chess", "depth", "chat"});
    refuses({"--task", "copy", "--chunks", "3"}, {"--chunks", "--items"});
    refuses({"--task", "copy", "--items", "0"}, {"--items", "'0'"});
    refuses({"--task", "copy", "--items", "needle=3"}, {"needle", "copy"});
    refuses({"--task", "copy,copy"}, {"copy", "twice"});
    refuses({"--task", "copy", "--lengths", "100000"}, {"100000", "8192"});
    refuses({"--task", "hellaswag"}, {"--task-data hellaswag=FILE"});
    refuses({"--task", "hellaswag,gsm8k", "--task-data", "x"}, {"gsm8k=FILE"});
    refuses({"--task", "copy", "--task-data", "x"}, {"hellaswag"});
    refuses({"--task", "depth"}, {"-f"});
    refuses({"-f", kData + "/wiki-excerpt.txt", "--items", "3"}, {"--items", "--task"});
    refuses({"--task", "hellaswag", "--task-data", "/no/such/file"}, {"/no/such/file"});
    refuses({"--task", "hellaswag", "--task-data", KVAQ_MODEL}, {"GGUF"});
    refuses({"--task", "gsm8k", "--task-data", kData + "/wiki-excerpt.txt"}, {"line 1", "question"});
    refuses({"--task", "copy", "--json", "/no/such/folder/x.json"}, {"/no/such/folder"});
}

TEST(EvalTask, WritesTableAndNumbersAndKeepsWhatItDid) {
    const TemporaryFolder folder;
    const std::string json = folder.file("copy.json");
    const std::vector<std::string> args = {"--task", "copy",     "--items", "2",    "--lengths", "256",
                                           "--plan", "k4v2-rot", "--types", "q4_0", "-b",        "128",
                                           "-t",     "2",        "--json",  json};
    const ProcessResult first = eval(args);
    ASSERT_EQ(first.exit_code, 0) << first.err;
    EXPECT_NE(first.out.find("### copy"), std::string::npos) << first.out;
    EXPECT_NE(first.out.find("| k4v2-rot |"), std::string::npos) << first.out;
    EXPECT_NE(first.err.find("copy 2/2"), std::string::npos) << first.err;
    EXPECT_NE(first.err.find("s left"), std::string::npos) << first.err;
    std::ifstream file(json);
    const nlohmann::json numbers = nlohmann::json::parse(file);
    EXPECT_EQ(numbers.at("kind"), "kvaq.suite");
    EXPECT_EQ(numbers.at("tasks").at(0).at("n_items"), 2);
    ASSERT_TRUE(std::filesystem::exists(json + ".items.jsonl"));
    const ProcessResult again = eval(args);
    EXPECT_EQ(again.out, first.out);
    EXPECT_EQ(again.err.find("copy 2/2"), std::string::npos) << "done again: " << again.err;
    std::vector<std::string> other = args;
    other[7] = "k4v4-rot";
    const ProcessResult refused = eval(other);
    EXPECT_EQ(refused.exit_code, 1);
    EXPECT_NE(refused.err.find("k4v2-rot"), std::string::npos) << refused.err;
    EXPECT_NE(refused.err.find("--results"), std::string::npos) << refused.err;
}

}  // namespace
}  // namespace kvaq
