-- A script for wrk. Arguments after --: "body FILE" posts the file; "paths PATH..." requests these in
-- turn; "varied" and "proxied" send different requests. It prints the result as one line of JSON.

local VARIANTS = 1000
local requests = {}
local turn = 0

local function in_turn()
   request = function()
      turn = turn % #requests + 1
      return requests[turn]
   end
end

-- Requests of 1,000 users: different paths, queries, cookies and ids of realistic lengths.
local function vary(proxied)
   local fields = {}
   for name, value in pairs(wrk.headers) do
      fields[name] = value
   end
   for i = 1, VARIANTS do
      local id = string.format("%08x%08x", i * 2654435761 % 4294967296, i * 40503 % 4294967296)
      fields["Cookie"] = "session=" .. id .. id .. "; theme=dark; seen=" .. i
      fields["X-Request-Id"] = id
      if proxied then
         local address = string.format("203.0.%d.%d", i % 113, i % 251 + 1)
         fields["X-Forwarded-For"] = address
         fields["X-Real-IP"] = address
      end
      local path = string.format("/shop/%d/items/%d?page=%d&q=term%d", i % 7, i * 37, i % 11, i)
      requests[i] = wrk.format("GET", path, fields)
   end
end

function init(args)
   if args[1] == "body" then
      wrk.method = "POST"
      local file = assert(io.open(args[2], "rb"))
      wrk.body = file:read("*a")
      file:close()
   elseif args[1] == "paths" then
      for i = 2, #args do
         requests[i - 1] = wrk.format("GET", args[i])
      end
      in_turn()
   elseif args[1] then
      vary(args[1] == "proxied")
      in_turn()
   end
end

function done(summary, latency)
   local e = summary.errors
   io.write(string.format(
      '\n{"requests": %d, "seconds": %.6f, "errors": %d, "p50_ms": %.3f, "p99_ms": %.3f, "p999_ms": %.3f}\n',
      summary.requests, summary.duration / 1e6,
      e.connect + e.read + e.write + e.status + e.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3))
end
