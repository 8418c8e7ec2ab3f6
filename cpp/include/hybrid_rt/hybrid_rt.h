#pragma once

// All of hybrid_rt: load a bundle, ask what would run, write a backend.

#include "hybrid_rt/bundle.h"
#include "hybrid_rt/detections.h"
#include "hybrid_rt/detector.h"
#include "hybrid_rt/engine.h"
#include "hybrid_rt/error.h"
#include "hybrid_rt/log.h"
#include "hybrid_rt/message.h"
#include "hybrid_rt/opened_engine.h"
#include "hybrid_rt/plugin/backend.h"
#include "hybrid_rt/segment.h"
#include "hybrid_rt/specs.h"
#include "hybrid_rt/verify.h"
