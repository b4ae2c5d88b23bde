-- Sends requests that were signed ahead, each of them once, and prints what came of them as one line.
-- Arguments: file of requests (one a line: headers separated by tabs, the body last), milliseconds between
-- two requests of a connection (0: as fast as possible).
local requests = {}
local next_one = 0
local pause = 0

function init(args)
  pause = tonumber(args[2])
  for line in io.lines(args[1]) do
    local headers = {}
    local fields = {}
    for field in line:gmatch("[^\t]+") do fields[#fields + 1] = field end
    for index = 1, #fields - 1 do
      local name, value = fields[index]:match("^([^:]+): (.*)$")
      headers[name] = value
    end
    headers["content-type"] = "application/json"
    requests[#requests + 1] = wrk.format("POST", wrk.path, headers, fields[#fields])
  end
end

function request()
  next_one = next_one + 1
  -- What is sent twice is not work done twice, so it must be seen in the result.
  if next_one > #requests then io.stderr:write("out of requests\n") os.exit(3) end
  return requests[next_one]
end

function delay()
  return pause == 0 and 0 or math.random(0, 2 * pause)
end

function done(summary, latency)
  io.write(string.format('RESULT {"requests":%d,"microseconds":%d,"bad_status":%d,"failed":%d,"p50":%d,"p99":%d}\n',
    summary.requests, summary.duration, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
