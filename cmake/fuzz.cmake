# Fuzz targets: tests/fuzz/<name>_fuzz.cc. Their corpora: what kvaq_fuzz_corpus writes (small files of the present formats) and what was found,
# in tests/fuzz/corpus/<name>. With KVAQ_FUZZER (clang) they are libFuzzer programs
# (make fuzz); without, tests/fuzz/replay_main.cc runs the corpus and a bounded number of its mutations, as tests. Both under ASan and UBSan,
# with a copy of the sources in which readers do not stop at a wrong checksum.
option(KVAQ_FUZZER "fuzz targets are libFuzzer programs (needs clang)" OFF)

set(KVAQ_FUZZ_FLAGS -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)

# kvaq_fuzz_library(<name> <sources...>): those sources, sanitized.
function(kvaq_fuzz_library name)
  add_library(${name} STATIC ${ARGN})
  target_compile_options(${name} PUBLIC ${KVAQ_FUZZ_FLAGS})
  target_compile_definitions(${name} PUBLIC FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION)
  target_link_options(${name} PUBLIC -fsanitize=address,undefined)
  target_link_libraries(${name} PUBLIC kvaq_options Threads::Threads Eigen3::Eigen GTest::gtest)
  if(KVAQ_FUZZER)
    target_compile_options(${name} PUBLIC -fsanitize=fuzzer-no-link)
  endif()
endfunction()

# kvaq_fuzz_corpus_program(<library>): it and the test that runs it before the targets' tests.
function(kvaq_fuzz_corpus_program library)
  add_executable(kvaq_fuzz_corpus tests/fuzz/make_corpus.cc)
  target_link_libraries(kvaq_fuzz_corpus PRIVATE ${library})
  add_test(NAME Fuzz.corpus COMMAND kvaq_fuzz_corpus "${CMAKE_BINARY_DIR}/fuzz-corpus")
  set_tests_properties(Fuzz.corpus PROPERTIES LABELS fast FIXTURES_SETUP fuzz_corpus)
endfunction()

# kvaq_fuzz_target(<name> <library> <mutations>)
function(kvaq_fuzz_target name library mutations)
  if(KVAQ_FUZZER)
    add_executable(kvaq_${name}_fuzz tests/fuzz/${name}_fuzz.cc)
    target_link_options(kvaq_${name}_fuzz PRIVATE -fsanitize=fuzzer)
  else()
    add_executable(kvaq_${name}_fuzz tests/fuzz/${name}_fuzz.cc tests/fuzz/replay_main.cc)
    add_test(NAME Fuzz.${name} COMMAND kvaq_${name}_fuzz --mutations ${mutations} --seconds 15 "${CMAKE_BINARY_DIR}/fuzz-corpus/${name}"
      "${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name}")
    set_tests_properties(Fuzz.${name} PROPERTIES LABELS fast TIMEOUT 300 FIXTURES_REQUIRED fuzz_corpus)
  endif()
  target_link_libraries(kvaq_${name}_fuzz PRIVATE ${library})
endfunction()
