/* A load generator for what wrk can't do: a number of requests per connection, and a fixed rate. It
 * also pipelines. One thread.
 *
 * generator PORT SECONDS CONNECTIONS FILE PER_CONNECTION PIPELINED RATE
 *
 * FILE            has the bytes of one request
 * PER_CONNECTION  requests, after which the client closes the connection; 0: it never does
 * PIPELINED       requests that leave together on a connection; the next ones follow when all of
 *                 them are answered
 * RATE            requests/s of all connections; 0: as fast as they are answered
 *
 * With a rate, request number i is due at i / RATE, whatever the server does, and its latency counts
 * from that time. So if a server stalls, all requests that were due meanwhile are late: there is no
 * coordinated omission. Without a rate, latency counts from the time of sending; for the first
 * request of a connection, from the start of connecting. Prints one line of JSON. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST_PIPELINED 64
#define HEAD_BYTES 16384
/* How long to wait for requests that were due, but not answered at the end. */
#define GRACE_NS 5000000000LL

enum part { HEAD, BODY, CHUNK_SIZE, CHUNK, TRAILER, UNTIL_CLOSE };

struct connection {
    int fd; /* -1: not connected */
    int asked, waiting; /* requests on this connection; those without a complete response */
    long long since[MOST_PIPELINED]; /* when the waiting ones were due, the oldest first */
    const char *out; /* what is left to send */
    size_t out_left;
    int watched; /* epoll's events */
    enum part part; /* of the response that arrives */
    long long left; /* bytes of its body or chunk */
    int closes; /* the server closes after it */
    char head[HEAD_BYTES]; /* an incomplete head or line */
    size_t used;
};

static struct sockaddr_in server;
static struct connection *connections, **free_ones; /* a ring of connections without a request */
static int count, first_free, free_count, per_connection, pipelined, epoll;
static char *requests; /* PIPELINED copies of the request */
static size_t request_size;
static unsigned *times; /* latencies in units of 0.1 us */
static size_t answered, room, opened, errors;

static long long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void die(const char *message)
{
    perror(message);
    exit(1);
}

static void set_free(struct connection *c)
{
    free_ones[(first_free + free_count++) % count] = c;
}

static struct connection *take_free(void)
{
    struct connection *c = free_ones[first_free];
    first_free = (first_free + 1) % count;
    free_count--;
    return c;
}

static void disconnect(struct connection *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

/* The connection is lost: so are the requests that wait on it. */
static void lose(struct connection *c)
{
    errors += c->waiting;
    disconnect(c);
    if (c->waiting) {
        c->waiting = 0;
        set_free(c);
    }
}

static void watch(struct connection *c, int events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (c->watched != events && epoll_ctl(epoll, c->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event))
        die("epoll_ctl");
    c->watched = events;
}

static int connect_now(struct connection *c)
{
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->asked = c->watched = 0;
    c->part = HEAD;
    c->used = 0;
    opened++;
    return connect(c->fd, (struct sockaddr *)&server, sizeof server) == 0 || errno == EINPROGRESS;
}

static void flush(struct connection *c)
{
    while (c->out_left) {
        ssize_t sent = send(c->fd, c->out, c->out_left, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) {
            lose(c);
            return;
        }
        if (sent < 0)
            break; /* the connection, or room in the kernel's buffer, is yet to come */
        c->out += sent;
        c->out_left -= sent;
    }
    watch(c, c->out_left ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* Send as many requests as leave together; they are due at this time. */
static void ask(struct connection *c, long long due)
{
    int number = pipelined, connected = 1;
    if (c->fd < 0)
        connected = connect_now(c);
    if (per_connection && number > per_connection - c->asked)
        number = per_connection - c->asked;
    c->waiting = number;
    c->asked += number;
    for (int i = 0; i < number; i++)
        c->since[i] = due;
    c->out = requests;
    c->out_left = number * request_size;
    if (connected)
        flush(c);
    else
        lose(c);
}

static void complete(struct connection *c)
{
    if (answered == room) {
        room = room ? 2 * room : 1 << 20;
        times = realloc(times, room * sizeof *times);
        if (!times)
            die("realloc");
    }
    times[answered++] = (now_ns() - c->since[0]) / 100;
    c->waiting--;
    memmove(c->since, c->since + 1, c->waiting * sizeof *c->since);
    c->part = HEAD;
    c->used = 0;
    if (c->closes) {
        int lost = c->waiting; /* lose() sets the connection free only if some are lost */
        lose(c);
        if (!lost)
            set_free(c);
    } else if (!c->waiting) {
        if (per_connection && c->asked >= per_connection)
            disconnect(c);
        set_free(c);
    }
}

/* Read the head; 0 if it isn't a 200 response. */
static int read_head(struct connection *c)
{
    char *line = c->head, *end;
    if (c->used < 12 || memcmp(c->head + 8, " 200", 4))
        return 0;
    c->closes = 0;
    c->part = UNTIL_CLOSE;
    while ((end = strstr(line, "\r\n")) && end != line) {
        if (!strncasecmp(line, "content-length:", 15)) {
            c->part = BODY;
            c->left = atoll(line + 15);
        } else if (!strncasecmp(line, "transfer-encoding: chunked", 26)) {
            c->part = CHUNK_SIZE;
        } else if (!strncasecmp(line, "connection: close", 17)) {
            c->closes = 1;
        }
        line = end + 2;
    }
    c->used = 0;
    return 1;
}

/* Append to c->head until it ends with `mark`; return how many bytes that took, and set `*whole` if
 * it ends so. -1: it is too long. */
static ssize_t gather(struct connection *c, const char *data, size_t size, const char *mark, int *whole)
{
    size_t length = strlen(mark), begun = c->used;
    size_t from = begun > length - 1 ? begun - (length - 1) : 0;
    size_t room_left = HEAD_BYTES - 1 - begun, taken = size < room_left ? size : room_left;
    char *found;
    memcpy(c->head + begun, data, taken);
    found = memmem(c->head + from, begun + taken - from, mark, length);
    if (!found && taken < size)
        return -1;
    *whole = found != NULL;
    c->used = found ? (size_t)(found - c->head) + length : begun + taken;
    c->head[c->used] = 0;
    return c->used - begun;
}

/* Read a part of a response; return how many bytes that took, or -1 if it is no proper one. */
static ssize_t read_part(struct connection *c, const char *data, size_t size)
{
    int whole = 0;
    ssize_t taken = size;
    switch (c->part) {
    case HEAD:
        taken = gather(c, data, size, "\r\n\r\n", &whole);
        if (whole && !read_head(c))
            return -1;
        if (whole && c->part == BODY && !c->left)
            complete(c);
        return taken;
    case BODY:
    case CHUNK:
        taken = (long long)size < c->left ? (ssize_t)size : (ssize_t)c->left;
        c->left -= taken;
        if (!c->left && c->part == CHUNK)
            c->part = CHUNK_SIZE;
        else if (!c->left)
            complete(c);
        return taken;
    case CHUNK_SIZE:
        taken = gather(c, data, size, "\r\n", &whole);
        if (whole) {
            c->left = strtoll(c->head, NULL, 16) + 2;
            c->part = c->left > 2 ? CHUNK : TRAILER;
            c->used = 0;
        }
        return taken;
    case TRAILER:
        taken = gather(c, data, size, "\r\n", &whole);
        if (whole && c->used == 2)
            complete(c);
        else if (whole)
            c->used = 0;
        return taken;
    case UNTIL_CLOSE:
        break;
    }
    return taken;
}

static void receive(struct connection *c)
{
    static char buffer[1 << 18];
    ssize_t size = recv(c->fd, buffer, sizeof buffer, 0), done = 0;
    if (size < 0 && errno == EAGAIN)
        return;
    if (size == 0 && c->part == UNTIL_CLOSE) {
        c->closes = 1;
        complete(c);
        return;
    }
    if (size <= 0) {
        lose(c);
        return;
    }
    while (done < size && c->fd >= 0) {
        ssize_t taken = c->waiting ? read_part(c, buffer + done, size - done) : -1;
        if (taken < 0) {
            errors += !c->waiting; /* more than was asked for */
            lose(c);
            return;
        }
        done += taken;
    }
}

static void wait_for_events(int timeout_ms)
{
    struct epoll_event events[256];
    int number = epoll_wait(epoll, events, 256, timeout_ms);
    for (int i = 0; i < number; i++) {
        struct connection *c = events[i].data.ptr;
        if (events[i].events & EPOLLOUT)
            flush(c);
        if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            receive(c);
    }
}

static int ascending(const void *a, const void *b)
{
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return (x > y) - (x < y);
}

static double percentile_ms(double share)
{
    size_t at = answered * share;
    return answered ? times[at < answered ? at : answered - 1] / 1e4 : 0;
}

static void read_request(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        die(path);
    fseek(file, 0, SEEK_END);
    request_size = ftell(file);
    rewind(file);
    requests = malloc(pipelined * request_size);
    if (!requests || fread(requests, 1, request_size, file) != request_size)
        die(path);
    for (int i = 1; i < pipelined; i++)
        memcpy(requests + i * request_size, requests, request_size);
    fclose(file);
}

static void prepare(char **arguments)
{
    int paced = atof(arguments[7]) != 0;
    server.sin_family = AF_INET;
    server.sin_port = htons(atoi(arguments[1]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    count = atoi(arguments[3]);
    per_connection = atoi(arguments[5]);
    pipelined = atoi(arguments[6]);
    if (count < 1 || pipelined < 1 || pipelined > (paced ? 1 : MOST_PIPELINED)) {
        fprintf(stderr, "at least 1 connection, and 1 to %d requests together (1 with a rate)\n", MOST_PIPELINED);
        exit(2);
    }
    read_request(arguments[4]);
    epoll = epoll_create1(0);
    connections = calloc(count, sizeof *connections);
    free_ones = calloc(count, sizeof *free_ones);
    if (epoll < 0 || !connections || !free_ones)
        die("no memory");
    for (int i = 0; i < count; i++) {
        connections[i].fd = -1;
        set_free(&connections[i]);
    }
}

int main(int argc, char **argv)
{
    if (argc != 8) {
        fprintf(stderr, "usage: %s PORT SECONDS CONNECTIONS FILE PER_CONNECTION PIPELINED RATE\n", argv[0]);
        return 2;
    }
    prepare(argv);
    double rate = atof(argv[7]), seconds = atof(argv[2]);
    long long begun = now_ns(), end = begun + (long long)(seconds * 1e9), now;
    size_t asked = 0, due = (size_t)(rate * seconds);
    if (rate) {
        /* All that were due get the time to be answered. */
        while ((now = now_ns()) < end + GRACE_NS && answered + errors < due) {
            while (free_count && asked < due && begun + asked / rate * 1e9 <= now)
                ask(take_free(), begun + (long long)(asked++ / rate * 1e9));
            /* Rounded down: the last part of a millisecond is spent polling. */
            double wait_ms = asked < due ? (begun - now) / 1e6 + asked / rate * 1e3 : 1;
            wait_for_events(!free_count || wait_ms > 1 ? 1 : 0);
        }
        errors += due - (answered + errors < due ? answered + errors : due);
        now = now < end ? end : now;
    } else {
        while ((now = now_ns()) < end) {
            for (int i = free_count; i; i--)
                ask(take_free(), now);
            wait_for_events(1);
        }
    }
    qsort(times, answered, sizeof *times, ascending);
    printf("{\"requests\": %zu, \"seconds\": %.6f, \"errors\": %zu, \"connections\": %zu, \"p50_ms\": %.4f,"
           " \"p90_ms\": %.4f, \"p99_ms\": %.4f, \"p999_ms\": %.4f}\n",
           answered, (now - begun) / 1e9, errors, opened, percentile_ms(.5), percentile_ms(.9),
           percentile_ms(.99), percentile_ms(.999));
    return 0;
}
