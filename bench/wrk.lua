-- For wrk, with one thread: a closed loop of exactly so many requests, each with another number in it. bench/load.py
-- starts it and reads its last line. Arguments: the file of the request, what in it the number is put in place of, the
-- first number, how many requests, how many connections, and the status and some words of a good answer.

local ffi = require("ffi")
ffi.cdef [[
    struct moment { long seconds; long nanoseconds; };
    int clock_gettime(int clock, struct moment *moment);
    int getpid(void);
    int kill(int pid, int signal);
]]

local MONOTONIC, SIGINT = 1, 2
local HOUR_MS = 3600000

local moment = ffi.new("struct moment")
local threads = {}

local function now()
    ffi.C.clock_gettime(MONOTONIC, moment)
    return tonumber(moment.seconds) + tonumber(moment.nanoseconds) / 1e9
end

function setup(thread)
    table.insert(threads, thread)
end

function init(arguments)
    local file = assert(io.open(arguments[1], "rb"))
    local template = file:read("*a")
    file:close()
    parts = {}
    local from = 1
    while true do
        local first, last = string.find(template, arguments[2], from, true)
        table.insert(parts, string.sub(template, from, (first or 0) - 1))
        if not first then break end
        from = last + 1
    end
    number, wanted, alone = tonumber(arguments[3]), tonumber(arguments[4]), arguments[5] == "1"
    good_status, good_words = tonumber(arguments[6]), arguments[7]
    -- wrk asks for one request before it begins, and looks at it.
    claimed, sent, answered, latencies = 0, -1, 0, {}
end

-- Asked before each request: what is over the number waits for an end that comes sooner.
function delay()
    if claimed == wanted then return HOUR_MS end
    claimed = claimed + 1
    return 0
end

function request()
    sent = sent + 1
    asked = now()
    if sent == 1 then began = asked end
    return table.concat(parts, string.format("%012d", number + sent))
end

function response(status, headers, body)
    if status ~= good_status or not string.find(body, good_words, 1, true) then
        io.stderr:write("HTTP ", status, "\n", string.sub(body, 1, 500), "\n")
        os.exit(1)
    end
    local moment_of_answer = now()
    answered = answered + 1
    if alone then table.insert(latencies, (moment_of_answer - asked) * 1e6) end
    if answered == wanted then
        seconds = moment_of_answer - began
        wrk.thread:stop()
        -- The main thread sleeps until it is told to end.
        ffi.C.kill(ffi.C.getpid(), SIGINT)
    end
end

function done(summary, latency, requests)
    local thread = threads[1]
    local own = thread:get("latencies")
    table.sort(own)
    local function percentile(part)
        -- wrk's own percentiles add what a client with a fixed rate would have met; one connection is told exactly.
        return #own > 0 and own[math.min(#own, math.floor(part * #own) + 1)] or latency:percentile(part * 100)
    end
    io.write(string.format(
        "%d %d %.6f %.0f %.0f %.0f\n", thread:get("sent"), thread:get("answered"), thread:get("seconds") or 0,
        percentile(0.5), percentile(0.95), percentile(0.99)
    ))
end
