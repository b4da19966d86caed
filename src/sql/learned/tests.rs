use super::*;
use crate::sql::{Access, Effect, SqlContext, classify_with};

fn function(name: &str, arguments: &str, volatility: Volatility, language: &str, body: Option<&str>) -> FunctionRow {
    let count = if arguments.is_empty() {
        0
    } else {
        arguments.split(',').count()
    };
    FunctionRow {
        schema: "public".into(),
        name: name.into(),
        arguments: arguments.into(),
        least: count,
        most: Some(count),
        volatility,
        language: language.into(),
        body: body.map(str::to_owned),
    }
}

fn relation(name: &str, kind: &str) -> RelationRow {
    RelationRow {
        schema: "public".into(),
        name: name.into(),
        kind: kind.into(),
        unlogged: false,
        query: None,
        policies: None,
        triggers: None,
    }
}

fn view(name: &str, query: &str) -> RelationRow {
    RelationRow {
        query: Some(query.into()),
        ..relation(name, "v")
    }
}

fn names() -> Learned {
    use Volatility::{Immutable, Stable, Volatile};
    let sql = |name: &str, body: &str| function(name, "", Volatile, "sql", Some(body));
    let plpgsql = |name: &str, body: &str| function(name, "", Volatile, "plpgsql", Some(body));
    let rows = CatalogRows {
        functions: vec![
            function("stable", "integer", Stable, "plpgsql", None),
            function("overloaded", "integer", Immutable, "c", None),
            function("overloaded", "integer, text", Volatile, "c", None),
            function("lower", "mytype", Volatile, "c", None),
            function("allowed", "", Volatile, "c", None),
            function("of_row", "orders", Volatile, "c", None),
            function("of_number", "integer", Volatile, "c", None),
            FunctionRow {
                schema: "other".into(),
                ..function("elsewhere", "", Stable, "c", None)
            },
            sql("reads", "select count(*) from t where n > $1"),
            sql("reads_by_two", "select reads() + 1; select 2"),
            sql("returns", "RETURN (SELECT count(*) FROM public.t)"),
            sql("atomic", "BEGIN ATOMIC SELECT public.reads(); SELECT 2; END"),
            sql("writes", "insert into t values (1) returning n"),
            sql("locks", "select pg_advisory_lock(1)"),
            sql("recursive", "select recursive()"),
            plpgsql(
                "looks",
                "declare n int; begin select count(*) into n from t where reads() > 0; return n; end",
            ),
            plpgsql("looks_at_node", "begin return pg_is_in_recovery(); end"),
            plpgsql("takes_any", "declare r t%rowtype; begin return 1; end"),
            plpgsql(
                "contained",
                "begin update t set n = 1; if (found) then return writes(); end if; end",
            ),
            plpgsql("sets", "begin perform set_config('a.b', '1', false); end"),
            plpgsql("also_sets", "begin set work_mem = '1MB'; end"),
            plpgsql(
                "calls_sets",
                "begin perform sets(), also_sets(); set local x.y = 1; end",
            ),
            plpgsql("sets_anything", "begin perform set_config($1, '1', false); end"),
            plpgsql("becomes", "begin set role somebody; end"),
            plpgsql("makes", "begin create temp table x (n int); end"),
            plpgsql("dynamic", "begin execute 'select 1'; end"),
            plpgsql("calls_makes", "begin perform makes(); end"),
        ],
        operators: vec![
            OperatorRow {
                schema: "public".into(),
                name: "###".into(),
                volatility: Volatile,
            },
            OperatorRow {
                schema: "public".into(),
                name: "<%".into(),
                volatility: Stable,
            },
        ],
        types: vec![
            TypeRow {
                schema: "public".into(),
                name: "mood".into(),
                volatility: Immutable,
                checks: None,
                parts: None,
            },
            TypeRow {
                schema: "public".into(),
                name: "positive".into(),
                volatility: Immutable,
                checks: Some(vec!["VALUE > 0".into()]),
                parts: None,
            },
            TypeRow {
                schema: "public".into(),
                name: "writing".into(),
                volatility: Immutable,
                checks: Some(vec!["public.writes() > 0".into()]),
                parts: None,
            },
            TypeRow {
                schema: "public".into(),
                name: "pair".into(),
                volatility: Immutable,
                checks: None,
                parts: Some(vec!["writing".into()]),
            },
            TypeRow {
                schema: "public".into(),
                name: "cast_by_function".into(),
                volatility: Immutable,
                checks: None,
                parts: None,
            },
        ],
        casts: vec![CastRow {
            between: vec!["int4".into(), "cast_by_function".into()],
        }],
        relations: vec![
            view("upper_view", "SELECT n FROM public.lower_view"),
            view("lower_view", "SELECT t.n, public.stable(t.n) AS s FROM public.t"),
            view("drawing", "SELECT nextval('s'::regclass) AS n"),
            view("upon_drawing", "SELECT n FROM public.drawing"),
            view("node", "SELECT pid FROM pg_stat_activity"),
            view("locking", "SELECT pg_advisory_lock(1)"),
            RelationRow {
                unlogged: true,
                ..relation("fast", "r")
            },
            relation("far", "f"),
            relation("s", "S"),
            RelationRow {
                policies: Some(vec!["(owner = CURRENT_USER)".into()]),
                ..relation("guarded", "r")
            },
            RelationRow {
                policies: Some(vec!["public.writes() > 0".into()]),
                ..relation("guarded_by_a_write", "r")
            },
            RelationRow {
                triggers: Some(vec![("public".into(), "sets".into())]),
                ..relation("with_trigger", "r")
            },
            RelationRow {
                triggers: Some(vec![("public".into(), "contained".into())]),
                ..relation("with_contained_trigger", "r")
            },
        ],
        children: vec![
            ChildRow {
                parent: ("public".into(), "parent".into()),
                child: ("public".into(), "middle".into()),
            },
            ChildRow {
                parent: ("public".into(), "middle".into()),
                child: ("public".into(), "fast".into()),
            },
        ],
    };
    Learned::from_rows(&rows, &["public.allowed".into()])
}

#[test]
fn what_only_reads_is_a_read() {
    let names = names();
    for sql in [
        "select stable(1)",
        "select public.stable(n) from t",
        "select overloaded(1)",
        "select allowed()",
        "select elsewhere()",
        "select other.elsewhere()",
        "select reads(), reads_by_two(), returns(), atomic(), looks()",
        "select 'a' <% 'b'",
        "select 'happy'::mood, '1'::positive, positive '1', cast('1' as positive)",
        "select * from upper_view",
        "select * from public.lower_view l where l.n = 1",
        "select * from guarded",
        "select x.fast from t as x",
        "select lower(1, 2)",
    ] {
        let class = classify_with(sql.as_bytes(), &SqlContext::default(), &names);
        assert_eq!(class.access, Access::Read, "{sql}: {}", class.reason);
    }
}

#[test]
fn what_may_do_more_says_why() {
    let names = names();
    for (sql, reason) in [
        (
            "select overloaded(1, 'a')",
            "function public.overloaded(integer, text) is VOLATILE",
        ),
        ("select writes()", "function public.writes() is VOLATILE"),
        ("select locks()", "function public.locks() is VOLATILE"),
        ("select recursive()", "function public.recursive() is VOLATILE"),
        ("select contained()", "function public.contained() is VOLATILE"),
        ("select looks_at_node()", "function public.looks_at_node() is VOLATILE"),
        // A domain whose CHECK writes may be the type of any column.
        ("select takes_any()", "function public.takes_any() is VOLATILE"),
        // The argument's type may be what makes it the database's own function.
        ("select lower(x) from t", "function public.lower(mytype) is VOLATILE"),
        ("select nowhere()", "function nowhere isn't known to be safe"),
        ("select other.stable(1)", "function stable isn't known to be safe"),
        ("select 1 ### 2", "operator ### isn't built in"),
        (
            "select '1'::writing",
            "type writing isn't built in, so that a cast to it may run anything",
        ),
        (
            "select '(1)'::pair",
            "type pair isn't built in, so that a cast to it may run anything",
        ),
        (
            "select 1::cast_by_function",
            "type cast_by_function isn't built in, so that a cast to it may run anything",
        ),
        (
            "select * from drawing",
            "public.drawing is a view: function nextval writes",
        ),
        (
            "select * from upon_drawing",
            "public.upon_drawing is a view: public.drawing is a view: function nextval writes",
        ),
        (
            "select * from node",
            "public.node is a view: the answer of pg_stat_activity describes the node that gives it",
        ),
        ("select * from fast", "public.fast is UNLOGGED: standbys don't have it"),
        (
            "select * from a.public.fast",
            "public.fast is UNLOGGED: standbys don't have it",
        ),
        ("select * from far", "public.far is a foreign table"),
        (
            "select * from s",
            "public.s is a sequence, whose columns run ahead on a standby",
        ),
        (
            "select * from guarded_by_a_write",
            "public.guarded_by_a_write has row security: function public.writes() is VOLATILE",
        ),
        (
            "select * from parent",
            "public.parent reads public.middle, which reads public.fast, which is UNLOGGED: standbys don't have it",
        ),
        (
            "copy upon_drawing to stdout",
            "public.upon_drawing is a view: public.drawing is a view: function nextval writes",
        ),
    ] {
        let class = classify_with(sql.as_bytes(), &SqlContext::default(), &names);
        assert_eq!(class.access, Access::Write, "{sql}");
        assert_eq!(class.reason.to_string(), reason, "{sql}");
    }
    // A hint doesn't overrule what does harm in silence.
    let class = classify_with(
        b"/* pgsluice: standby */ select * from locking",
        &SqlContext::default(),
        &names,
    );
    assert!(!class.standby_by_hint);
}

#[test]
fn a_function_may_be_called_like_a_field() {
    let names = names();
    for (sql, access) in [
        ("select o.of_row from orders o", Access::Write),
        ("select (o).of_row from orders o", Access::Write),
        ("select (a).of_number from t", Access::Write),
        // A column, since no function of that name takes a row.
        ("select t.of_number from t", Access::Read),
        ("select a from public.of_row", Access::Read),
    ] {
        let class = classify_with(sql.as_bytes(), &SqlContext::default(), &names);
        assert_eq!(class.access, access, "{sql}: {}", class.reason);
    }
}

#[test]
fn a_path_hides_nothing() {
    let names = names();
    let context = SqlContext {
        pg_catalog_first: false,
        ..SqlContext::default()
    };
    for (sql, access) in [
        ("select upper('x'), 1 + 1, '1'::int", Access::Read),
        ("select stable(1)", Access::Read),
        ("select lower(x) from t", Access::Write),
    ] {
        assert_eq!(classify_with(sql.as_bytes(), &context, &names).access, access, "{sql}");
    }
}

#[test]
fn what_may_leave_traces_is_known_from_what_does_not() {
    let names = names();
    for (sql, leaves) in [
        ("select writes()", false),
        ("select contained()", false),
        ("update t set n = contained()", false),
        ("insert into t (n) values (1)", false),
        ("insert into with_contained_trigger (n) values (1)", false),
        ("insert into with_trigger (n) values (1)", true),
        ("delete from public.with_trigger", true),
        ("select locks()", true),
        ("select sets()", false),
        ("select also_sets()", false),
        ("select makes()", true),
        ("select dynamic()", true),
        ("select calls_makes()", true),
        ("select sets_anything()", true),
        ("select becomes()", true),
        ("select overloaded(1, 'a')", true),
        ("select nowhere()", true),
    ] {
        let class = classify_with(sql.as_bytes(), &SqlContext::default(), &names);
        assert_eq!(class.unknown_code, leaves, "{sql}");
        let draws = class.effects.contains(&Effect::NextVal);
        let must_draw = sql.starts_with("select writes") || sql.starts_with("select contained");
        assert!(draws || !must_draw, "{sql} may draw from a sequence");
    }
}

#[test]
fn settings_that_a_function_leaves_are_known_by_name() {
    let names = names();
    let set = |name: &str| Effect::SetConfig { name: name.into() };
    for (sql, settings) in [
        ("select sets()", vec![set("a.b")]),
        ("select calls_sets() from t", vec![set("a.b"), set("work_mem")]),
        ("update t set n = 1 where also_sets()", vec![set("work_mem")]),
        ("select contained()", vec![]),
    ] {
        let class = classify_with(sql.as_bytes(), &SqlContext::default(), &names);
        let mut effects = class.effects.to_vec();
        effects.retain(|effect| *effect != Effect::NextVal);
        assert_eq!(effects, settings, "{sql}");
    }
}
