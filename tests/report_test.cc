// kvaq report as a user meets it: real files in, a page out; bad files named in one line, nothing half-written.
#include <gtest/gtest.h>

#include "tests/subprocess.h"

namespace kvaq {
namespace {

namespace fs = std::filesystem;

const std::string kModel = KVAQ_MODEL;
const std::string kResults = std::string(KVAQ_DATA_DIR) + "/../results/";
const std::string kChecker = std::string(KVAQ_DATA_DIR) + "/../tests/check_page.py";

ProcessResult kvaq_cli(std::vector<std::string> args) {
    args.insert(args.begin(), KVAQ_CLI);
    return run_process(args);
}

std::string read_text(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

class ReportVerb : public testing::Test {
  protected:
    /// Exit code 1, one line that names all things, and no file.
    void expect_refused(std::vector<std::string> args, const std::vector<std::string>& things) {
        args.insert(args.begin(), "report");
        args.insert(args.end(), {"-o", folder_.file("r.html"), "--md", folder_.file("r.md")});
        const ProcessResult result = kvaq_cli(args);
        EXPECT_EQ(result.exit_code, 1);
        EXPECT_EQ(result.out, "");
        EXPECT_EQ(lines_starting(result.err, "kvaq: error: ").size(), 1U) << result.err;
        EXPECT_EQ(lines_starting(result.err, "").size(), 1U) << result.err;
        for (const std::string& thing : things)
            EXPECT_NE(result.err.find(thing), std::string::npos) << thing << " in: " << result.err;
        EXPECT_FALSE(fs::exists(folder_.file("r.html")));
        EXPECT_FALSE(fs::exists(folder_.file("r.md")));
    }

    TemporaryFolder folder_;
};

TEST_F(ReportVerb, MakesOnePageOfAPlanAndTheCommittedResults) {
    const std::string plan = folder_.file("x.plan.gguf");
    ASSERT_EQ(kvaq_cli({"plan", "-m", kModel, "--policy", "uniform:k4v2-rot-s4", "-o", plan}).exit_code, 0);
    const std::string html = folder_.file("r.html");
    const std::string markdown = folder_.file("r.md");
    const std::string eval = kResults + "quality-smollm2-135m.json";
    const std::string frontier = kResults + "frontier-smollm2-135m.json";
    const std::string speed = kResults + "speed-smollm2-135m.json";
    const ProcessResult made = kvaq_cli({"report", "-m", kModel, "--plan", plan, "--eval", eval, "--frontier", frontier,
                                         "--speed", speed, "-o", html, "--md", markdown});
    ASSERT_EQ(made.exit_code, 0) << made.err;
    EXPECT_NE(made.err.find("summary, bits, eval, frontier, memory, speed, sources"), std::string::npos) << made.err;
    const ProcessResult checked =
        run_process({"python3", kChecker, html, "--eval", eval, "--frontier", frontier, "--speed", speed});
    EXPECT_EQ(checked.exit_code, 0) << checked.err;

    // Bytes are those of kvaq estimate.
    const std::string json = folder_.file("e.json");
    ASSERT_EQ(kvaq_cli({"estimate", "-m", kModel, "-c", "8192", "--plan", plan, "--json", json}).exit_code, 0);
    const std::string estimate = read_text(json);
    const std::string key = "\"bytes\": ";
    const size_t at = estimate.find(key) + key.size();
    const std::string bytes = estimate.substr(at, estimate.find_first_of(",\n", at) - at);
    EXPECT_NE(read_text(html).find("<data value=\"" + bytes + "\">"), std::string::npos) << bytes;
    // Every file that it was made from is named with its command.
    for (const std::string& file : {plan, eval, frontier, speed})
        EXPECT_NE(read_text(markdown).find("`" + file + "`"), std::string::npos) << file;
}

TEST_F(ReportVerb, NamesWhatIsWrongAndWritesNothing) {
    const std::string nowhere = folder_.file("nowhere.json");
    const std::string text = folder_.file("text.json");
    std::ofstream(text) << "no JSON";
    const std::string eval = kResults + "quality-smollm2-135m.json";
    expect_refused({}, {"--plan"});
    expect_refused({"--eval", nowhere}, {nowhere});
    expect_refused({"--eval", eval, "--speed", text}, {text, "kvaq bench"});
    expect_refused({"--eval", eval, "--speed", eval}, {eval, "kvaq.speed", "--eval"});
    expect_refused({"--plan", eval}, {eval});
    expect_refused({"--stats", text}, {text});
    expect_refused({"--plan", "k4v2"}, {"k4v2", "-m"});
    expect_refused({"--eval", eval, "--frontier", kResults + "kivj-gemma-3-270m.json"},
                   {"different models", "Gemma 3 270m"});
    expect_refused({"-m", kModel, "--frontier", kResults + "kivj-gemma-3-270m.json"}, {"different models"});

    const ProcessResult no_output = kvaq_cli({"report", "--eval", eval});
    EXPECT_EQ(no_output.exit_code, 1);
    EXPECT_NE(no_output.err.find("--md"), std::string::npos) << no_output.err;
}

}  // namespace
}  // namespace kvaq
