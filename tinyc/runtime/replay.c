// Replays a captured call with as little work as can be: checks what the program was made for,
// puts pointers in place, calls it, and wraps its results.
//
// Python says the same in full (capture/jitted.py, capture/replay.py) and takes every call that
// this file gives back with None: `run` never decides that a program is wrong, only that it
// does not know. It keeps the GIL, so programs are short, and nothing between the last check and
// the end of the program runs Python code.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

typedef long step_function(void **, void *, const void *);

// Tensor, Slot, Buffer and Lease, from `setup`, and where Buffers keep their fields.
static PyTypeObject *tensor_type, *slot_type, *buffer_type, *lease_type;
static PyObject *next_uid, *origin, *no_arguments, *no_category;
static PyObject *name_slot, *name_mode, *name_buffer, *name_origin;
enum { SHAPE, DTYPE, DEVICE, PTR, MEMORY, CATEGORY, UID, ORIGIN, FIELDS };
static const char *const field_names[FIELDS] = {
    "shape", "dtype", "device", "ptr", "_memory", "category", "uid", "origin"};
static Py_ssize_t field_offsets[FIELDS];

#define GRAD 1  // state.GRAD

static PyObject **field(PyObject *buffer, int which) {
    return (PyObject **)((char *)buffer + field_offsets[which]);
}

// A variable that must hold what it held: of a dictionary, of a closure (no name), of an object.
typedef struct {
    PyObject *holder, *name, *value;
} Guard;

// What an argument must be, and which of the program's pointers it is (none: -1).
typedef struct {
    PyObject *shape, *dtype, *device;
    int wants_grad;
    Py_ssize_t position;
} Input;

// Memory for a result: two buffers take turns, since a caller often holds the one before.
#define TURNS 2
typedef struct {
    PyObject *shape, *dtype, *device;
    PyObject *buffers[TURNS];
    PyObject *ready;  // which of them is free; borrowed
    int next;
    Py_ssize_t position;
} Result;

typedef struct {
    PyObject_HEAD
    PyObject *guards_kept, *inputs_kept, *results_kept, *alive, *pending, *locked;
    Py_ssize_t n_guards, n_inputs, n_results;
    Guard *guards;
    Input *inputs;
    Result *results;
    void **pointers;
    step_function *step;
    void *arena, *runtime;
    long *status;
    int single, busy;
} Plan;

static int holds(const Plan *plan) {
    if (PyDict_GET_SIZE(plan->pending)) return 0;
    for (const Guard *g = plan->guards; g < plan->guards + plan->n_guards; g++) {
        PyObject *found;
        if (PyDict_Check(g->holder)) {
            found = PyDict_GetItemWithError(g->holder, g->name);
        } else if (PyCell_Check(g->holder)) {
            found = PyCell_GET(g->holder);
        } else {
            found = PyObject_GetAttr(g->holder, g->name);
            Py_XDECREF(found);  // its holder has it still
        }
        if (found != g->value) {
            PyErr_Clear();
            return 0;
        }
    }
    return 1;
}

static int is_same(PyObject *one, PyObject *other) {
    return one == other || (one && PyObject_RichCompareBool(one, other, Py_EQ) == 1);
}

// The address of an argument's memory, or null where it is not what the program was made for.
static void *address_of(PyObject *tensor, const Input *input) {
    if (!PyObject_TypeCheck(tensor, tensor_type)) return NULL;
    PyObject *mode = PyObject_GetAttr(tensor, name_mode);
    PyObject *slot = PyObject_GetAttr(tensor, name_slot);
    PyObject *buffer = NULL;
    void *address = NULL;
    if (mode && slot && Py_TYPE(slot) == slot_type &&
        (PyLong_AsLong(mode) == GRAD) == input->wants_grad)
        buffer = PyObject_GetAttr(slot, name_buffer);
    if (buffer && Py_TYPE(buffer) == buffer_type && *field(buffer, DTYPE) == input->dtype &&
        is_same(*field(buffer, SHAPE), input->shape) &&
        is_same(*field(buffer, DEVICE), input->device))
        address = PyLong_AsVoidPtr(*field(buffer, PTR));
    Py_XDECREF(buffer);
    Py_XDECREF(slot);
    Py_XDECREF(mode);
    if (PyErr_Occurred()) PyErr_Clear();
    return address;
}

// Does nobody else see this memory, by its buffer or by an array?
static int is_free(PyObject *buffer) {
    if (!buffer || Py_REFCNT(buffer) != 1 || *field(buffer, CATEGORY) != no_category) return 0;
    PyObject *memory = *field(buffer, MEMORY);
    PyObject **weak = (PyObject **)PyObject_GET_WEAKREFS_LISTPTR(buffer);
    return Py_TYPE(memory) == lease_type && Py_REFCNT(memory) == 1 && !*weak;
}

// Find free memory for each result. Returns 1 if new memory was made, so that Python code ran.
static int ready_results(Plan *plan) {
    int made = 0;
    for (Result *r = plan->results; r < plan->results + plan->n_results; r++) {
        r->ready = NULL;
        for (int i = 0; i < TURNS && !r->ready; i++)
            if (is_free(r->buffers[i])) r->ready = r->buffers[i];
        if (r->ready) continue;
        PyObject *buffer = PyObject_CallFunctionObjArgs(
            (PyObject *)buffer_type, r->device, r->dtype, r->shape, NULL);
        if (!buffer) return -1;
        PyObject *before = r->buffers[r->next];
        r->buffers[r->next] = buffer;
        r->next = (r->next + 1) % TURNS;
        Py_XDECREF(before);
        made = 1;
    }
    return made;
}

// A new tensor on a buffer, as `Tensor._init_buffer` makes it.
static PyObject *wrap(PyObject *buffer) {
    PyObject *slot = PyBaseObject_Type.tp_new(slot_type, no_arguments, NULL);
    PyObject *tensor = PyBaseObject_Type.tp_new(tensor_type, no_arguments, NULL);
    if (!slot || !tensor || PyObject_SetAttr(slot, name_buffer, buffer) ||
        PyObject_SetAttr(slot, name_origin, origin) || PyObject_SetAttr(tensor, name_slot, slot))
        Py_CLEAR(tensor);
    Py_XDECREF(slot);
    return tensor;
}

// Claim a result's memory: it is another tensor's from now on.
static PyObject *claimed(const Result *result) {
    PyObject *uid = PyIter_Next(next_uid);
    if (!uid) return NULL;
    Py_SETREF(*field(result->ready, UID), uid);
    Py_INCREF(origin);
    Py_XSETREF(*field(result->ready, ORIGIN), origin);
    return wrap(result->ready);
}

static PyObject *results_of(const Plan *plan) {
    if (plan->single) return claimed(plan->results);
    PyObject *all = PyTuple_New(plan->n_results);
    for (Py_ssize_t i = 0; all && i < plan->n_results; i++) {
        PyObject *tensor = claimed(plan->results + i);
        if (tensor)
            PyTuple_SET_ITEM(all, i, tensor);
        else
            Py_CLEAR(all);
    }
    return all;
}

static PyObject *run(Plan *plan, PyObject *arguments) {
    for (int made = 1; made;) {  // checks come last: making memory runs Python code
        if (!holds(plan)) Py_RETURN_NONE;
        made = ready_results(plan);
        if (made < 0) return NULL;
    }
    for (Py_ssize_t i = 0; i < plan->n_inputs; i++) {
        const Input *input = plan->inputs + i;
        void *address = address_of(PyTuple_GET_ITEM(arguments, i), input);
        if (!address) Py_RETURN_NONE;
        if (input->position >= 0) plan->pointers[input->position] = address;
    }
    for (Result *r = plan->results; r < plan->results + plan->n_results; r++)
        plan->pointers[r->position] = PyLong_AsVoidPtr(*field(r->ready, PTR));
    // Whoever runs a program without the GIL holds the device's lock.
    PyObject *locked = PyObject_CallNoArgs(plan->locked);
    if (!locked) return NULL;
    Py_DECREF(locked);
    if (locked != Py_False) Py_RETURN_NONE;
    plan->status[0] = 0;
    plan->step(plan->pointers, plan->arena, plan->runtime);
    if (plan->status[0]) Py_RETURN_NONE;  // Python runs it again and says what is out of range
    return results_of(plan);
}

PyDoc_STRVAR(run_doc, "Return the results of a call on a tuple of arguments, or None if the program"
                      " may be wrong for it.");

static PyObject *plan_run(Plan *plan, PyObject *arguments) {
    if (!PyTuple_Check(arguments) || PyTuple_GET_SIZE(arguments) != plan->n_inputs || plan->busy)
        Py_RETURN_NONE;
    plan->busy = 1;  // Python code that allocations run, or another thread then, may come here
    PyObject *found = run(plan, arguments);
    plan->busy = 0;
    return found;
}

static int traverse_plan(Plan *plan, visitproc visit, void *arg) {
    Py_VISIT(plan->guards_kept);
    Py_VISIT(plan->inputs_kept);
    Py_VISIT(plan->results_kept);
    Py_VISIT(plan->alive);
    Py_VISIT(plan->pending);
    Py_VISIT(plan->locked);
    for (Py_ssize_t i = 0; plan->results && i < plan->n_results; i++)
        for (int k = 0; k < TURNS; k++) Py_VISIT(plan->results[i].buffers[k]);
    return 0;
}

static int clear_plan(Plan *plan) {
    plan->n_guards = 0;
    plan->n_inputs = -1;  // no call fits from now on
    for (Py_ssize_t i = 0; plan->results && i < plan->n_results; i++)
        for (int k = 0; k < TURNS; k++) Py_CLEAR(plan->results[i].buffers[k]);
    Py_CLEAR(plan->guards_kept);
    Py_CLEAR(plan->inputs_kept);
    Py_CLEAR(plan->results_kept);
    Py_CLEAR(plan->alive);
    Py_CLEAR(plan->pending);
    Py_CLEAR(plan->locked);
    return 0;
}

static void dealloc_plan(Plan *plan) {
    PyObject_GC_UnTrack(plan);
    clear_plan(plan);
    PyMem_Free(plan->guards);
    PyMem_Free(plan->inputs);
    PyMem_Free(plan->results);
    PyMem_Free(plan->pointers);
    Py_TYPE(plan)->tp_free((PyObject *)plan);
}

// Take apart the tuples that a plan is made of; they keep what the structures point to alive.
static int fill(Plan *plan, PyObject *addresses) {
    plan->n_guards = PyTuple_GET_SIZE(plan->guards_kept);
    plan->n_inputs = PyTuple_GET_SIZE(plan->inputs_kept);
    plan->n_results = PyTuple_GET_SIZE(plan->results_kept);
    Py_ssize_t n_pointers = PyTuple_GET_SIZE(addresses);
    plan->guards = PyMem_Calloc(plan->n_guards + 1, sizeof(Guard));
    plan->inputs = PyMem_Calloc(plan->n_inputs + 1, sizeof(Input));
    plan->results = PyMem_Calloc(plan->n_results + 1, sizeof(Result));
    plan->pointers = PyMem_Calloc(n_pointers + 1, sizeof(void *));
    if (!plan->guards || !plan->inputs || !plan->results || !plan->pointers)
        return PyErr_NoMemory() != NULL;
    for (Py_ssize_t i = 0; i < plan->n_guards; i++) {
        Guard *g = plan->guards + i;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(plan->guards_kept, i), "OOO", &g->holder, &g->name,
                              &g->value))
            return 0;
    }
    for (Py_ssize_t i = 0; i < plan->n_inputs; i++) {
        Input *in = plan->inputs + i;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(plan->inputs_kept, i), "OOOpn", &in->shape,
                              &in->dtype, &in->device, &in->wants_grad, &in->position))
            return 0;
    }
    for (Py_ssize_t i = 0; i < plan->n_results; i++) {
        Result *r = plan->results + i;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(plan->results_kept, i), "OOOn", &r->shape,
                              &r->dtype, &r->device, &r->position))
            return 0;
    }
    for (Py_ssize_t i = 0; i < n_pointers; i++)
        plan->pointers[i] = PyLong_AsVoidPtr(PyTuple_GET_ITEM(addresses, i));
    return !PyErr_Occurred();
}

static PyObject *new_plan(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"guards", "inputs",  "results", "pointers", "step",   "arena",
                            "runtime", "status", "pending", "locked",   "single", "alive", NULL};
    PyObject *guards, *inputs, *results, *addresses, *pending, *locked, *alive;
    unsigned long long step, arena, runtime, status;
    int single;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O!O!O!O!KKKKO!OpO", names, &PyTuple_Type, &guards, &PyTuple_Type,
            &inputs, &PyTuple_Type, &results, &PyTuple_Type, &addresses, &step, &arena, &runtime,
            &status, &PyDict_Type, &pending, &locked, &single, &alive))
        return NULL;
    Plan *plan = (Plan *)type->tp_alloc(type, 0);
    if (!plan) return NULL;
    plan->guards_kept = Py_NewRef(guards);
    plan->inputs_kept = Py_NewRef(inputs);
    plan->results_kept = Py_NewRef(results);
    plan->pending = Py_NewRef(pending);
    plan->locked = Py_NewRef(locked);
    plan->alive = Py_NewRef(alive);
    plan->step = (step_function *)(uintptr_t)step;
    plan->arena = (void *)(uintptr_t)arena;
    plan->runtime = (void *)(uintptr_t)runtime;
    plan->status = (long *)(uintptr_t)status;
    plan->single = single;
    if (!fill(plan, addresses)) Py_CLEAR(plan);
    return (PyObject *)plan;
}

static PyMethodDef plan_methods[] = {{"run", (PyCFunction)plan_run, METH_O, run_doc}, {NULL}};

static PyTypeObject plan_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "tinyc_replay.Plan",
    .tp_basicsize = sizeof(Plan),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = new_plan,
    .tp_dealloc = (destructor)dealloc_plan,
    .tp_traverse = (traverseproc)traverse_plan,
    .tp_clear = (inquiry)clear_plan,
    .tp_methods = plan_methods,
};

// setup(Tensor, Slot, Buffer, Lease, iterator of uids, origin of results)
static PyObject *setup(PyObject *module, PyObject *args) {
    if (!PyArg_ParseTuple(args, "O!O!O!O!OO", &PyType_Type, &tensor_type, &PyType_Type, &slot_type,
                          &PyType_Type, &buffer_type, &PyType_Type, &lease_type, &next_uid,
                          &origin))
        return NULL;
    Py_INCREF(args);  // for as long as the process lives
    for (int i = 0; i < FIELDS; i++) {
        PyObject *found = PyObject_GetAttrString((PyObject *)buffer_type, field_names[i]);
        if (!found) return NULL;
        if (!Py_IS_TYPE(found, &PyMemberDescr_Type))
            return PyErr_Format(PyExc_TypeError, "Buffer.%s is no slot", field_names[i]);
        field_offsets[i] = ((PyMemberDescrObject *)found)->d_member->offset;
        Py_DECREF(found);
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {{"setup", setup, METH_VARARGS, NULL}, {NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "tinyc_replay", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit_tinyc_replay(void) {
    if (PyType_Ready(&plan_type) < 0) return NULL;
    no_arguments = PyTuple_New(0);
    no_category = PyUnicode_InternFromString("");
    name_slot = PyUnicode_InternFromString("_slot");
    name_mode = PyUnicode_InternFromString("_mode");
    name_buffer = PyUnicode_InternFromString("buffer");
    name_origin = PyUnicode_InternFromString("origin");
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddObjectRef(module, "Plan", (PyObject *)&plan_type) < 0)
        Py_CLEAR(module);
    return module;
}
