# Defines targets for the libtorch of any torch wheel. torch's own CMake config requires a CUDA toolkit for a wheel with
# CUDA, even if no CUDA code is compiled. This file is installed with the package config, so that users' projects are
# built with the same flags.

# Checks that libstdc++ is linked dynamically, because torch's libraries share one. If the program or library has its
# own copy, the first stream or exception that crosses the boundary crashes the process. Compilers link it statically
# with -static-libstdc++, or if they find only libstdc++.a.
function(hybrid_rt_check_libstdcxx)
  if(HYBRID_RT_SHARES_LIBSTDCXX OR NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR CMAKE_CROSSCOMPILING)
    return()
  endif()
  set(_probe ${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/hybrid_rt_probe)
  file(WRITE ${_probe}.cpp "#include <sstream>\nint main(int n, char**) { std::ostringstream s; s << n; return s.str().empty(); }\n")
  try_compile(_compiles ${CMAKE_CURRENT_BINARY_DIR} ${_probe}.cpp COPY_FILE ${_probe})
  set(_needed "")
  if(_compiles)
    file(STRINGS ${_probe} _needed REGEX "libstdc\\+\\+\\.so" LIMIT_COUNT 1)
  endif()
  if(_compiles AND NOT _needed)
    message(FATAL_ERROR "hybrid_rt[build]: compiler: expected one that links libstdc++.so, as torch does, got "
      "${CMAKE_CXX_COMPILER}, which links libstdc++ statically: exceptions would crash. Choose another one with "
      "-DCMAKE_CXX_COMPILER= or in the environment variable CXX, and leave out -static-libstdc++.")
  endif()
  set(HYBRID_RT_SHARES_LIBSTDCXX ON CACHE INTERNAL "The compiler links torch's libstdc++")
endfunction()

function(hybrid_rt_find_torch directory)
  if(TARGET hybrid_rt::torch)
    return()
  endif()
  hybrid_rt_check_libstdcxx()
  find_file(_header version.h NO_CACHE NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH
    PATHS "${directory}/include/torch/headeronly" "${directory}/include/torch/csrc/api/include/torch")
  if(NOT _header)
    message(FATAL_ERROR "hybrid_rt[build]: torch: expected a directory with its headers, got '${directory}'. "
      "Install torch first (pip install torch torchvision), or name it with -DHYBRID_RT_TORCH_FOLDER=.")
  endif()
  add_library(hybrid_rt::torch INTERFACE IMPORTED)
  target_include_directories(hybrid_rt::torch SYSTEM INTERFACE
    "${directory}/include" "${directory}/include/torch/csrc/api/include")
  target_link_libraries(hybrid_rt::torch INTERFACE "${directory}/lib/libtorch_cpu.so" "${directory}/lib/libc10.so")
  target_link_options(hybrid_rt::torch INTERFACE "-Wl,-rpath,${directory}/lib")
  target_compile_features(hybrid_rt::torch INTERFACE cxx_std_20)

  file(STRINGS "${_header}" version REGEX "define TORCH_VERSION_M[A-Z]+ ")
  string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*" "\\1.\\2" version "${version}")
  if(version VERSION_LESS 2.11)
    message(FATAL_ERROR "hybrid_rt[build]: torch: expected 2.11 or newer, got ${version} in ${directory}. "
      "Upgrade it: pip install --upgrade torch torchvision.")
  endif()
  set(HYBRID_RT_TORCH_VERSION "${version}" PARENT_SCOPE)
  message(STATUS "hybrid_rt: torch ${version} in ${directory}")
endfunction()
