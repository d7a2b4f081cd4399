/* A stand-in for NVIDIA's management library, for tests. Not NVIDIA's code; only the signatures are those of nvml.h.
 *
 * Its answers stand in a text file, named by FAKE_NVML_STATE, one "key value" a line, looked at anew by every call:
 *
 *     gpus 2              devices
 *     power 250000        a value of all devices
 *     power.1 300000      of device 1
 *     fail.CALL 3         the call answers this code; fail.CALL.1 for device 1 only
 *     lost_after.1 40     device 1 answers 40 more calls, then GPU_IS_LOST; the count starts when the key appears
 *     field.83.value 123  a field value, of field.83.type (default 3, 64 bits), or field.83.code for an error
 *     xid.0 79            delivered once per new value
 *
 * What has no value is NOT_SUPPORTED. With -DOLD_DRIVER the newer functions are not there at all.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_GPUS = 64, MAX_ENTRIES = 1024, NAME = 96, MAX_SAMPLES = 256 };
enum {
    SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10,
    GPU_IS_LOST = 15
};

typedef struct { int index; } Device;
typedef struct { char key[NAME]; char text[NAME]; } Entry;

static Device devices[MAX_GPUS];
static Entry entries[MAX_ENTRIES];
static int entry_count;
static struct stat seen;
static long long calls_left[MAX_GPUS];
static int counting[MAX_GPUS];
static long long told_xid[MAX_GPUS];
static unsigned long long watched;

static void reload(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    struct stat now;
    if (path == NULL || stat(path, &now) != 0) { entry_count = 0; return; }
    if (now.st_ino == seen.st_ino && now.st_size == seen.st_size && now.st_mtim.tv_sec == seen.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec)
        return;
    seen = now;
    entry_count = 0;
    FILE *file = fopen(path, "r");
    if (file == NULL) return;
    while (entry_count < MAX_ENTRIES &&
           fscanf(file, "%95s %95[^\n]", entries[entry_count].key, entries[entry_count].text) == 2)
        entry_count++;
    fclose(file);
}

static const char *exact(const char *key) {
    for (int i = 0; i < entry_count; i++)
        if (strcmp(entries[i].key, key) == 0) return entries[i].text;
    return NULL;
}

static const char *text_of(const char *key, int gpu) {
    char own[NAME + 16];
    reload();
    snprintf(own, sizeof own, "%s.%d", key, gpu);
    const char *text = exact(own);
    return text != NULL ? text : exact(key);
}

static int number_of(const char *key, int gpu, long long *value) {
    const char *text = text_of(key, gpu);
    if (text == NULL) return 0;
    *value = strtoll(text, NULL, 0);
    return 1;
}

/* What a call on a device answers before it looks at anything. */
static int refused(const char *call, int gpu) {
    char key[NAME];
    long long code, left;
    snprintf(key, sizeof key, "fail.%s", call);
    if (number_of(key, gpu, &code)) return (int)code;
    if (gpu < 0) return SUCCESS;
    if (!number_of("lost_after", gpu, &left)) { counting[gpu] = 0; return SUCCESS; }
    if (!counting[gpu]) { counting[gpu] = 1; calls_left[gpu] = left; }
    return calls_left[gpu]-- > 0 ? SUCCESS : GPU_IS_LOST;
}

static int give(const char *call, Device *device, const char *key, long long *value) {
    int code = refused(call, device->index);
    if (code != SUCCESS) return code;
    return number_of(key, device->index, value) ? SUCCESS : NOT_SUPPORTED;
}

static int give_text(const char *call, Device *device, const char *key, char *out, unsigned int size) {
    int code = refused(call, device->index);
    if (code != SUCCESS) return code;
    const char *text = text_of(key, device->index);
    if (text == NULL) return NOT_SUPPORTED;
    snprintf(out, size, "%s", text);
    return SUCCESS;
}

#define UINT_CALL(NAME_, KEY)                                           \
    int NAME_(Device *device, unsigned int *out) {                      \
        long long value = 0;                                            \
        int code = give(#NAME_, device, KEY, &value);                   \
        if (code == SUCCESS) *out = (unsigned int)value;                \
        return code;                                                    \
    }

int nvmlInitWithFlags(unsigned int flags) { (void)flags; reload(); return refused("nvmlInitWithFlags", -1); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "an error"; }

int nvmlSystemGetDriverVersion(char *out, unsigned int size) {
    int code = refused("nvmlSystemGetDriverVersion", -1);
    if (code != SUCCESS) return code;
    const char *text = text_of("driver", -1);
    if (text == NULL) return NOT_SUPPORTED;
    snprintf(out, size, "%s", text);
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned int *out) {
    long long count = 0;
    int code = refused("nvmlDeviceGetCount_v2", -1);
    if (code != SUCCESS) return code;
    number_of("gpus", -1, &count);
    *out = (unsigned int)count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device **out) {
    if (index >= MAX_GPUS) return INVALID_ARGUMENT;
    int code = refused("nvmlDeviceGetHandleByIndex_v2", (int)index);
    if (code != SUCCESS) return code;
    devices[index].index = (int)index;
    *out = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetName(Device *d, char *out, unsigned int size) {
    return give_text("nvmlDeviceGetName", d, "name", out, size);
}
int nvmlDeviceGetUUID(Device *d, char *out, unsigned int size) {
    return give_text("nvmlDeviceGetUUID", d, "uuid", out, size);
}

typedef struct {
    char legacy[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} Pci;

int nvmlDeviceGetPciInfo_v3(Device *d, Pci *out) {
    memset(out, 0, sizeof *out);
    return give_text("nvmlDeviceGetPciInfo_v3", d, "bus_id", out->bus_id, sizeof out->bus_id);
}

typedef struct { unsigned int gpu, memory; } Usage;

int nvmlDeviceGetUtilizationRates(Device *d, Usage *out) {
    long long gpu = 0, memory = 0;
    int code = give("nvmlDeviceGetUtilizationRates", d, "util", &gpu);
    if (code != SUCCESS) return code;
    number_of("memory_util", d->index, &memory);
    out->gpu = (unsigned int)gpu;
    out->memory = (unsigned int)memory;
    return SUCCESS;
}

typedef struct { unsigned long long total, free, used; } Memory;

int nvmlDeviceGetMemoryInfo(Device *d, Memory *out) {
    long long total = 0, used = 0, reserved = 0;
    int code = give("nvmlDeviceGetMemoryInfo", d, "memory_total", &total);
    if (code != SUCCESS) return code;
    number_of("memory_used", d->index, &used);
    number_of("memory_reserved", d->index, &reserved);
    out->total = (unsigned long long)total;
    out->used = (unsigned long long)(used + reserved);
    out->free = out->total - out->used;
    return SUCCESS;
}

UINT_CALL(nvmlDeviceGetPowerUsage, "power")
UINT_CALL(nvmlDeviceGetEnforcedPowerLimit, "power_limit")
UINT_CALL(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_gen")
UINT_CALL(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_gen_max")
UINT_CALL(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
UINT_CALL(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max")
UINT_CALL(nvmlDeviceGetPersistenceMode, "persistence")
UINT_CALL(nvmlDeviceGetComputeMode, "compute_mode")
UINT_CALL(nvmlDeviceGetMaxMigDeviceCount, "mig_most")

static int clock_of(const char *call, Device *d, unsigned int type, const char *suffix, unsigned int *out) {
    char key[NAME];
    long long value = 0;
    snprintf(key, sizeof key, "clock%u%s", type, suffix);
    int code = give(call, d, key, &value);
    if (code == SUCCESS) *out = (unsigned int)value;
    return code;
}
int nvmlDeviceGetClockInfo(Device *d, unsigned int type, unsigned int *out) {
    return clock_of("nvmlDeviceGetClockInfo", d, type, "", out);
}
int nvmlDeviceGetMaxClockInfo(Device *d, unsigned int type, unsigned int *out) {
    return clock_of("nvmlDeviceGetMaxClockInfo", d, type, "_max", out);
}

int nvmlDeviceGetTemperature(Device *d, unsigned int sensor, unsigned int *out) {
    long long value = 0;
    (void)sensor;
    int code = give("nvmlDeviceGetTemperature", d, "temperature", &value);
    if (code == SUCCESS) *out = (unsigned int)value;
    return code;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *d, unsigned long long *out) {
    long long value = 0;
    int code = give("nvmlDeviceGetCurrentClocksThrottleReasons", d, "reasons", &value);
    if (code == SUCCESS) *out = (unsigned long long)value;
    return code;
}

int nvmlDeviceGetPcieThroughput(Device *d, unsigned int direction, unsigned int *out) {
    long long value = 0;
    int code = give("nvmlDeviceGetPcieThroughput", d, direction ? "pcie_rx" : "pcie_tx", &value);
    if (code == SUCCESS) *out = (unsigned int)value;
    return code;
}

int nvmlDeviceGetMigMode(Device *d, unsigned int *now, unsigned int *next) {
    long long value = 0;
    int code = give("nvmlDeviceGetMigMode", d, "mig", &value);
    if (code == SUCCESS) *now = *next = (unsigned int)value;
    return code;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned int place, Device **out) {
    long long count = 0;
    number_of("mig_devices", d->index, &count);
    if (place >= (unsigned int)count) return NOT_FOUND;
    *out = d;
    return SUCCESS;
}

typedef struct {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
} Process;

static int processes(const char *call, Device *d, unsigned int *count, Process *out) {
    long long there = 0, bytes = 0;
    int known;
    int code = give(call, d, "processes", &there);
    if (code != SUCCESS) return code;
    if (there == 0) { *count = 0; return SUCCESS; }
    if (*count < (unsigned int)there || out == NULL) { *count = (unsigned int)there; return INSUFFICIENT_SIZE; }
    known = number_of("process_memory", d->index, &bytes);
    for (unsigned int i = 0; i < (unsigned int)there; i++) {
        memset(&out[i], 0, sizeof out[i]);
        out[i].pid = 1000 + i;
        out[i].used = known ? (unsigned long long)bytes + i : ~0ULL; /* not available */
    }
    *count = (unsigned int)there;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(Device *d, unsigned int *count, Process *out) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v2", d, count, out);
}

typedef struct {
    Device *device;
    unsigned long long type, data;
    unsigned int gpu_instance, compute_instance;
} Event;

int nvmlEventSetCreate(void **out) {
    int code = refused("nvmlEventSetCreate", -1);
    if (code == SUCCESS) *out = &watched;
    return code;
}
int nvmlEventSetFree(void *set) { (void)set; return SUCCESS; }
int nvmlDeviceRegisterEvents(Device *d, unsigned long long types, void *set) {
    (void)types; (void)set;
    int code = refused("nvmlDeviceRegisterEvents", d->index);
    if (code == SUCCESS) watched |= 1ULL << d->index;
    return code;
}
int nvmlEventSetWait_v2(void *set, Event *out, unsigned int timeout_ms) {
    long long xid = 0;
    (void)set; (void)timeout_ms;
    for (int gpu = 0; gpu < MAX_GPUS; gpu++) {
        char key[NAME];
        snprintf(key, sizeof key, "xid.%d", gpu);
        reload();
        const char *text = exact(key);
        if (text == NULL || !(watched >> gpu & 1)) continue;
        xid = strtoll(text, NULL, 0);
        if (xid == told_xid[gpu]) continue;
        told_xid[gpu] = xid;
        memset(out, 0, sizeof *out);
        devices[gpu].index = gpu;
        out->device = &devices[gpu];
        out->type = 0x8;
        out->data = (unsigned long long)xid;
        return SUCCESS;
    }
    return TIMEOUT;
}

#ifndef OLD_DRIVER

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} MemoryV2;

int nvmlDeviceGetMemoryInfo_v2(Device *d, MemoryV2 *out) {
    long long total = 0, used = 0, reserved = 0;
    int code = give("nvmlDeviceGetMemoryInfo_v2", d, "memory_total", &total);
    if (code != SUCCESS) return code;
    number_of("memory_used", d->index, &used);
    number_of("memory_reserved", d->index, &reserved);
    out->total = (unsigned long long)total;
    out->used = (unsigned long long)used;
    out->reserved = (unsigned long long)reserved;
    out->free = out->total - out->used - out->reserved;
    return SUCCESS;
}

typedef struct { unsigned int version, sensor; int celsius; } Temperature;

int nvmlDeviceGetTemperatureV(Device *d, Temperature *out) {
    long long value = 0;
    int code = give("nvmlDeviceGetTemperatureV", d, "temperature_v", &value);
    if (code == SUCCESS) out->celsius = (int)value;
    return code;
}

int nvmlDeviceGetCurrentClocksEventReasons(Device *d, unsigned long long *out) {
    long long value = 0;
    int code = give("nvmlDeviceGetCurrentClocksEventReasons", d, "reasons", &value);
    if (code == SUCCESS) *out = (unsigned long long)value;
    return code;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned int *count, Process *out) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v3", d, count, out);
}

typedef union {
    double d;
    unsigned int ui;
    unsigned long ul;
    unsigned long long ull;
    long long sll;
    int si;
    unsigned short us;
} Value;

typedef struct {
    unsigned int field, scope;
    long long timestamp, latency_us;
    int type, code;
    Value value;
} FieldValue;

int nvmlDeviceGetFieldValues(Device *d, int count, FieldValue *values) {
    int refusal = refused("nvmlDeviceGetFieldValues", d->index);
    if (refusal != SUCCESS) return refusal;
    for (int i = 0; i < count; i++) {
        char key[NAME];
        long long value = 0, type = 3, code = SUCCESS;
        snprintf(key, sizeof key, "field.%u.code", values[i].field);
        if (number_of(key, d->index, &code) && code != SUCCESS) { values[i].code = (int)code; continue; }
        snprintf(key, sizeof key, "field.%u.type", values[i].field);
        number_of(key, d->index, &type);
        snprintf(key, sizeof key, "field.%u.value", values[i].field);
        if (!number_of(key, d->index, &value)) { values[i].code = NOT_SUPPORTED; continue; }
        values[i].code = SUCCESS;
        values[i].type = (int)type;
        values[i].value.ull = 0;
        if (type == 0) values[i].value.d = (double)value;
        else if (type == 1) values[i].value.ui = (unsigned int)value;
        else values[i].value.ull = (unsigned long long)value;
    }
    return SUCCESS;
}

typedef struct { unsigned int version, supported; } GpmSupport;
typedef struct { int used, gpu; } Sample;
static Sample samples[MAX_SAMPLES];

int nvmlGpmQueryDeviceSupport(Device *d, GpmSupport *out) {
    long long value = 0;
    int code = give("nvmlGpmQueryDeviceSupport", d, "gpm", &value);
    if (code == SUCCESS) out->supported = (unsigned int)value;
    return code;
}
int nvmlGpmSampleAlloc(Sample **out) {
    for (int i = 0; i < MAX_SAMPLES; i++)
        if (!samples[i].used) { samples[i].used = 1; samples[i].gpu = -1; *out = &samples[i]; return SUCCESS; }
    return 20; /* MEMORY */
}
int nvmlGpmSampleFree(Sample *sample) { sample->used = 0; return SUCCESS; }
int nvmlGpmSampleGet(Device *d, Sample *sample) {
    int code = refused("nvmlGpmSampleGet", d->index);
    if (code == SUCCESS) sample->gpu = d->index;
    return code;
}

typedef struct {
    unsigned int id;
    int code;
    double value;
    char *short_name, *long_name, *unit;
} Metric;
typedef struct {
    unsigned int version, count;
    Sample *before, *after;
    Metric metrics[];
} MetricsGet;

int nvmlGpmMetricsGet(MetricsGet *request) {
    if (request->version != 1 || request->before->gpu < 0 || request->before->gpu != request->after->gpu)
        return INVALID_ARGUMENT;
    int code = refused("nvmlGpmMetricsGet", request->after->gpu);
    if (code != SUCCESS) return code;
    for (unsigned int i = 0; i < request->count; i++) {
        char key[NAME];
        snprintf(key, sizeof key, "gpm.%u", request->metrics[i].id);
        const char *text = text_of(key, request->after->gpu);
        request->metrics[i].code = text == NULL ? NOT_SUPPORTED : SUCCESS;
        if (text != NULL) request->metrics[i].value = strtod(text, NULL);
    }
    return SUCCESS;
}

#endif
