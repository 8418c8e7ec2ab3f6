# Targets for the libtorch of a torch wheel, the same for every wheel: torch's own config asks for a CUDA toolkit when
# the wheel was built with CUDA, even where no CUDA code is compiled. Installed with the package config, so that a
# user's project is built by the same flags.

function(hybrid_rt_find_torch folder)
  if(TARGET hybrid_rt::torch)
    return()
  endif()
  find_file(_header version.h NO_CACHE NO_DEFAULT_PATH
    PATHS "${folder}/include/torch/headeronly" "${folder}/include/torch/csrc/api/include/torch")
  if(NOT _header)
    message(FATAL_ERROR "hybrid_rt[build]: torch: expected a folder with its headers, got '${folder}'. "
      "Install torch first (pip install torch torchvision), or name it with -DHYBRID_RT_TORCH_FOLDER=.")
  endif()
  add_library(hybrid_rt::torch INTERFACE IMPORTED)
  target_include_directories(hybrid_rt::torch SYSTEM INTERFACE
    "${folder}/include" "${folder}/include/torch/csrc/api/include")
  target_link_libraries(hybrid_rt::torch INTERFACE "${folder}/lib/libtorch_cpu.so" "${folder}/lib/libc10.so")
  target_link_options(hybrid_rt::torch INTERFACE "-Wl,-rpath,${folder}/lib")
  target_compile_features(hybrid_rt::torch INTERFACE cxx_std_20)

  file(STRINGS "${_header}" version REGEX "define TORCH_VERSION_M[A-Z]+ ")
  string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*" "\\1.\\2" version "${version}")
  if(version VERSION_LESS 2.11)
    message(FATAL_ERROR "hybrid_rt[build]: torch: expected 2.11 or newer, got ${version} in ${folder}. "
      "Upgrade it: pip install --upgrade torch torchvision.")
  endif()
  set(HYBRID_RT_TORCH_VERSION "${version}" PARENT_SCOPE)
  message(STATUS "hybrid_rt: torch ${version} in ${folder}")
endfunction()
